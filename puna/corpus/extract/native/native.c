/* The extractor's passes over a page, in C: from the tree that the parser wrote out to blocks, from blocks to
   numbers, and from these through the network.

   Everything here has its twin in Python (blocks.py, markup.py, features.py, layers.py), which says what is done and
   why, which works where this was not compiled, and to which the tests compare it. passes.py is the Python side. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

#include "text.h"

#include "tags.h"

#include "reader.h"

#include "measure.h"

#include "alike.h"

#include "numbers.h"

#include "layers.h"

#define TABLES "puna.corpus.extract.Tables"

static void free_tables(PyObject *capsule) {
    Tables *tables = PyCapsule_GetPointer(capsule, TABLES);
    map_release(&tables->tags);
    map_release(&tables->bits);
    map_release(&tables->classes);
    map_release(&tables->openings);
    Py_XDECREF(tables->block);
    Py_XDECREF(tables->drawn_formula);
    Py_XDECREF(tables->formula);
    Py_XDECREF(tables->essence);
    PyMem_Free(tables);
}

static PyObject *make_tables(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *tags, *bits, *classes, *openings, *block, *drawn_formula, *formula, *essence;
    if (!PyArg_ParseTuple(args, "O!O!O!O!OOOO", &PyDict_Type, &tags, &PyDict_Type, &bits, &PyDict_Type, &classes,
                          &PyDict_Type, &openings, &block, &drawn_formula, &formula, &essence))
        return NULL;
    if (PyDict_Size(bits) > 64 * WORDS)
        return PyErr_Format(PyExc_ValueError, "%zd words are more than %d", PyDict_Size(bits), 64 * WORDS);
    if (!PyType_Check(block) || !PyType_IsSubtype((PyTypeObject *)block, &PyTuple_Type))
        return PyErr_SetString(PyExc_TypeError, "Block is to be a named tuple"), NULL;
    Tables *tables = PyMem_Calloc(1, sizeof *tables);
    if (!tables) return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(tables, TABLES, free_tables);
    if (!capsule) return PyMem_Free(tables), NULL;
    if (map_fill(&tables->tags, tags) || map_fill(&tables->bits, bits) || map_fill(&tables->classes, classes) ||
        map_fill(&tables->openings, openings))
        return Py_DECREF(capsule), NULL;
    tables->hidden = map_get(&tables->bits, "hidden", 6);
    tables->width = (PyDict_Size(bits) + 7) / 8;
    tables->openings_width = (PyDict_Size(openings) + 7) / 8;
    tables->block = Py_NewRef(block);
    tables->drawn_formula = Py_NewRef(drawn_formula);
    tables->formula = Py_NewRef(formula);
    tables->essence = Py_NewRef(essence);
    return capsule;
}

/* In a loop that the compiler makes wide, which PyUnicode_Count is not. */
#define COUNT(type) \
    for (Py_ssize_t i = 0; i < length; i++) count += ((const type *)data)[i] == '<'
static Py_ssize_t count_tags(PyObject *html) {
    const void *data = PyUnicode_DATA(html);
    Py_ssize_t length = PyUnicode_GET_LENGTH(html);
    uint32_t count = 0;
    if (PyUnicode_KIND(html) == PyUnicode_1BYTE_KIND) COUNT(Py_UCS1);
    else if (PyUnicode_KIND(html) == PyUnicode_2BYTE_KIND) COUNT(Py_UCS2);
    else COUNT(Py_UCS4);
    return count;
}

/* Of each of the names, all short and in lower case, how many tags open it, less those that close it; nothing for a
   page of no more than `least` tags. */
static PyObject *unclosed(PyObject *self, PyObject *args) {
    (void)self;
    enum { MOST = 32, LONGEST = 8 };
    PyObject *html, *names;
    Py_ssize_t least;
    if (!PyArg_ParseTuple(args, "UO!n", &html, &PyList_Type, &names, &least)) return NULL;
    if (count_tags(html) <= least) return PyList_New(0);
    Py_ssize_t many = PyList_GET_SIZE(names), length = PyUnicode_GET_LENGTH(html), counts[MOST] = {0};
    Slice known[MOST];
    if (many > MOST) return PyErr_SetString(PyExc_ValueError, "too many names"), NULL;
    for (Py_ssize_t i = 0; i < many; i++)
        if (!(known[i].at = PyUnicode_AsUTF8AndSize(PyList_GET_ITEM(names, i), &known[i].size))) return NULL;
    int kind = PyUnicode_KIND(html);
    const void *data = PyUnicode_DATA(html);
    for (Py_ssize_t at = -1; (at = PyUnicode_FindChar(html, '<', at + 1, length, 1)) >= 0;) {
        char name[LONGEST];
        Py_ssize_t size = 0, next = at + 1;
        int closing = next < length && PyUnicode_READ(kind, data, next) == '/';
        next += closing;
        for (; next < length && size < LONGEST; next++) {
            Py_UCS4 letter = PyUnicode_READ(kind, data, next) | 32;
            if (letter < 'a' || letter > 'z') break;
            name[size++] = (char)letter;
        }
        Py_UCS4 after = next < length ? PyUnicode_READ(kind, data, next) : 0;
        if (after != '>' && (closing || after != ' ')) continue;
        for (Py_ssize_t i = 0; i < many; i++)
            if (equal((Slice){name, size}, known[i])) counts[i] += closing ? -1 : 1;
    }
    PyObject *made = PyList_New(many);
    for (Py_ssize_t i = 0; made && i < many; i++) {
        PyObject *number = PyLong_FromSsize_t(counts[i]);
        if (number) PyList_SET_ITEM(made, i, number);
        else Py_CLEAR(made);
    }
    return made;
}

/* The first start of a comment, script or style that is left out; its end goes to `end`. */
static const char *left_out(Slice html, const char **end) {
    static const struct {
        const char *open, *close;
    } kinds[] = {{"<!--", "-->"}, {"<script", "</script>"}, {"<style", "</style>"}};
    const char *at = html.at, *stop = at + html.size;
    for (; at < stop && (at = memchr(at, '<', (size_t)(stop - at))); at++) {
        for (int i = 0; i < 3; i++) {
            size_t length = strlen(kinds[i].open);
            const char *after = at + length;
            if ((size_t)(stop - at) < length || memcmp(at, kinds[i].open, length)) continue;
            if (i && (after == stop || (*after != ' ' && *after != '>'))) continue;
            if (stop - after >= 12 && !memcmp(after, " type=\"math/", 12)) continue;
            const char *close = find((Slice){after, stop - after}, kinds[i].close);
            *end = close ? close + strlen(kinds[i].close) : stop;
            return at;
        }
    }
    return NULL;
}

static PyObject *head_and_body(PyObject *self, PyObject *html) {
    (void)self;
    Slice all;
    Buffer kept = {0};
    if (!(all.at = PyUnicode_AsUTF8AndSize(html, &all.size))) return NULL;
    if (reserve(&kept, all.size)) return NULL;
    const char *at = all.at, *end = all.at + all.size, *from, *to;
    while ((from = left_out((Slice){at, end - at}, &to))) {
        append(&kept, at, from - at); /* has room */
        at = to;
    }
    append(&kept, at, end - at);
    const char *body = find((Slice){kept.data, kept.size}, "<body");
    Py_ssize_t head = body ? body - kept.data : kept.size;
    PyObject *made = string((Slice){kept.data, head});
    PyObject *rest = PyBytes_FromStringAndSize(kept.data + head, kept.size - head);
    release(&kept);
    PyObject *pair = made && rest ? PyTuple_Pack(2, made, rest) : NULL;
    Py_XDECREF(made);
    Py_XDECREF(rest);
    return pair;
}

static PyObject *read_blocks(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *capsule, *body;
    if (!PyArg_ParseTuple(args, "O!O!", &PyCapsule_Type, &capsule, &PyBytes_Type, &body)) return NULL;
    Reader reader = {.html = {PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body)}};
    if (!(reader.tables = PyCapsule_GetPointer(capsule, TABLES))) return NULL;
    reader.least_skipped = find(reader.html, "type=\"math/tex") ? BESIDE_TEX : ALWAYS;
    reader.blocks = PyList_New(0);
    reader.pictures = PyList_New(0);
    int failed = !reader.blocks || !reader.pictures || read_body(&reader);
    PyObject *found = NULL;
    if (!failed)
        found = Py_BuildValue("Oy#", reader.blocks, reader.containers.data, reader.containers.size);
    else if (reader.too_deep)
        found = Py_NewRef(Py_None);
    Buffer *buffers[] = {&reader.tags, &reader.open, &reader.containers, &reader.text, &reader.done};
    for (int i = 0; i < 5; i++) release(buffers[i]);
    Py_XDECREF(reader.blocks);
    Py_XDECREF(reader.pictures);
    Py_XDECREF(reader.tex);
    return found;
}

static PyObject *measure_blocks(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *capsule, *blocks, *title;
    if (!PyArg_ParseTuple(args, "O!O!U", &PyCapsule_Type, &capsule, &PyList_Type, &blocks, &title)) return NULL;
    Tables *tables = PyCapsule_GetPointer(capsule, TABLES);
    if (!tables) return NULL;
    Py_ssize_t count = PyList_GET_SIZE(blocks), width = tables->openings_width;
    PyObject *rows = PyBytes_FromStringAndSize(NULL, count * COLUMNS * (Py_ssize_t)sizeof(int32_t));
    PyObject *bits = PyBytes_FromStringAndSize(NULL, count * width);
    int failed = !rows || !bits;
    if (!failed) memset(PyBytes_AS_STRING(bits), 0, (size_t)(count * width));
    for (Py_ssize_t i = 0; !failed && i < count; i++) {
        int32_t row[COLUMNS];
        failed = measure(tables, PyList_GET_ITEM(blocks, i), title, row, (unsigned char *)PyBytes_AS_STRING(bits) + i * width);
        if (!failed) memcpy(PyBytes_AS_STRING(rows) + i * (Py_ssize_t)sizeof row, row, sizeof row);
    }
    PyObject *pair = failed ? NULL : PyTuple_Pack(2, rows, bits);
    Py_XDECREF(rows);
    Py_XDECREF(bits);
    return pair;
}

/* Of every container the nearest LEVELS of itself and those around it that hold more blocks than one and than the one
   inside: `enclosing` in features.py. */
static PyObject *enclosing(PyObject *self, PyObject *containers) {
    (void)self;
    if (!PyBytes_Check(containers)) return PyErr_SetString(PyExc_TypeError, "bytes of containers"), NULL;
    Py_ssize_t count = PyBytes_GET_SIZE(containers) / (Py_ssize_t)sizeof(Container);
    const Container *all = (const Container *)PyBytes_AS_STRING(containers);
    PyObject *made = PyBytes_FromStringAndSize(NULL, count * LEVELS * (Py_ssize_t)sizeof(int32_t));
    if (!made) return NULL;
    int32_t *levels = (int32_t *)PyBytes_AS_STRING(made);
    for (Py_ssize_t i = 0; i < count; i++) {
        int32_t *mine = levels + i * LEVELS, parent = all[i].parent, size = all[i].end - all[i].start;
        if (parent < 0 || parent >= i) {
            memset(mine, 0, LEVELS * sizeof *mine);
            continue;
        }
        const int32_t *above = levels + (Py_ssize_t)parent * LEVELS;
        int counts = size > 1 && size < all[parent].end - all[parent].start;
        if (counts) mine[0] = (int32_t)i;
        memcpy(mine + counts, above, (size_t)(LEVELS - counts) * sizeof *mine);
    }
    return made;
}

static PyMethodDef methods[] = {
    {"make_tables", make_tables, METH_VARARGS, "What the other functions look names and words up in."},
    {"unclosed", unclosed, METH_VARARGS, "How many tags open each of some elements, less those that close it."},
    {"head_and_body", head_and_body, METH_O, "Of a page as the parser writes it; the body as UTF-8."},
    {"read_blocks", read_blocks, METH_VARARGS, "Blocks, and containers as int32; None where elements nest too deep."},
    {"measure_blocks", measure_blocks, METH_VARARGS, "Numbers about blocks as int32, and bits of their openings."},
    {"enclosing", enclosing, METH_O, "Enclosing containers as int32, from containers as int32."},
    {"alike", alike, METH_VARARGS, "How much of the page is like each block, as int32."},
    {"numbers", numbers, METH_VARARGS, "What the network sees of blocks, as float32."},
    {"forward", forward, METH_VARARGS, "The network's logits as float32."},
    {0},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "VERSION", 4)) Py_CLEAR(made);
    return made;
}

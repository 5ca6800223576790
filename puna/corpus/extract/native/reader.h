/* The tags of a body to blocks: the same as _Reader in blocks.py, method by method. */

#define BREAK '\x1f'

enum { MAX_DEPTH = 2000 };

/* What an open element passes on to the text inside. */
typedef struct {
    Slice opened; /* its name */
    Slice tag;    /* of the innermost block-level element */
    Hints hints, near, own;
    int container, row, cell, group, in_link, preformatted, inline_;
} Element;

typedef struct {
    int32_t parent, start, end;
} Container;

typedef struct {
    const Tables *tables;
    Slice html;
    Buffer tags, open, containers; /* of Tag, Element, Container */
    PyObject *blocks;              /* list */
    int rows, cells, least_skipped, too_deep;
    /* The block in the making: */
    Buffer text, done;
    int parts;                /* strings that `text` was put together from; the last one and the one before: */
    Py_ssize_t last, before;  /* where they start */
    Element at;
    Py_ssize_t links, shallowest;
    PyObject *pictures; /* list */
    PyObject *tex;      /* or NULL */
} Reader;

static Element *open_elements(Reader *reader) { return (Element *)reader->open.data; }
static Py_ssize_t depth(const Reader *reader) { return reader->open.size / (Py_ssize_t)sizeof(Element); }
static Element *innermost(Reader *reader) { return open_elements(reader) + depth(reader) - 1; }
static Tag *tag_at(Reader *reader, Py_ssize_t i) { return (Tag *)reader->tags.data + i; }
static Py_ssize_t tag_count(const Reader *reader) { return reader->tags.size / (Py_ssize_t)sizeof(Tag); }

/* The text after tag i. */
static Slice text_after(Reader *reader, Py_ssize_t i) {
    const char *start = tag_at(reader, i)->end;
    const char *end = i + 1 < tag_count(reader) ? tag_at(reader, i + 1)->start : reader->html.at + reader->html.size;
    return (Slice){start, end - start};
}

static PyObject *string(Slice text) { return PyUnicode_DecodeUTF8(text.at, text.size, "replace"); }

static PyObject *bits(const Reader *reader, const Hints *hints) {
    char bytes[8 * WORDS];
    for (int i = 0; i < 8 * WORDS; i++) bytes[i] = (char)(hints->words[i / 8] >> 8 * (i % 8));
    return PyBytes_FromStringAndSize(bytes, reader->tables->width);
}

/* Takes the reference to `text`. */
static int put(Reader *reader, PyObject *text, int picture) {
    const Element *at = &reader->at;
    Py_ssize_t here = depth(reader), shallowest = reader->shallowest < here ? reader->shallowest : here;
    PyTypeObject *type = (PyTypeObject *)reader->tables->block;
    PyObject *block = type->tp_alloc(type, 12); /* a named tuple */
    if (!block) return Py_DECREF(text), -1;
    PyObject *values[12] = {
        text, picture ? PyUnicode_FromString("img") : string(at->tag), bits(reader, &at->hints), bits(reader, &at->near),
        PyLong_FromSsize_t(picture ? 0 : reader->links), PyLong_FromSsize_t(here), PyLong_FromSsize_t(shallowest),
        PyLong_FromLong(at->container), PyLong_FromLong(at->row), PyLong_FromLong(at->cell), PyLong_FromLong(at->group),
        PyBool_FromLong(at->preformatted && !picture),
    };
    int failed = 0;
    for (int i = 0; i < 12; i++) {
        failed |= !values[i];
        PyTuple_SET_ITEM(block, i, values[i]);
    }
    failed = failed || PyList_Append(reader->blocks, block);
    Py_DECREF(block);
    reader->shallowest = here;
    return failed ? -1 : 0;
}

/* The text of the block in the making, as it is to be shown, to `done`. */
static int finish_text(Reader *reader) {
    Buffer *done = &reader->done;
    Slice text = {reader->text.data, reader->text.size};
    done->size = 0;
    if (reader->at.preformatted) {
        if (append(done, text.at, text.size)) return -1;
        unescape(done, 0);
        for (Py_ssize_t i = 0; i < done->size; i++)
            if (done->data[i] == BREAK) done->data[i] = '\n';
        Py_ssize_t start = 0;
        while (start < done->size && done->data[start] == '\n') start++;
        const char *end = done->data + done->size;
        for (const char *last; end > done->data + start && space(last = back(done->data + start, end), end);) end = last;
        done->size = end - done->data - start;
        if (done->size) memmove(done->data, done->data + start, (size_t)done->size);
        return 0;
    }
    const char *at = text.at, *end = at + text.size;
    while (at < end) { /* its lines */
        const char *next = memchr(at, BREAK, (size_t)(end - at));
        if (append_words(done, (Slice){at, (next ? next : end) - at})) return -1;
        if (!next) break;
        if (done->size && append(done, "\n", 1)) return -1;
        at = next + 1;
    }
    while (done->size && done->data[done->size - 1] == '\n') done->size--;
    unescape(done, 0);
    return 0;
}

static int flush(Reader *reader) {
    if (reader->parts) {
        if (finish_text(reader)) return -1;
        Slice text = {reader->done.data, reader->done.size};
        if (text.size && strip(text).size) {
            PyObject *made = string(text);
            if (!made || put(reader, made, 0)) return -1;
        }
        reader->text.size = reader->links = reader->parts = 0;
        Py_CLEAR(reader->tex);
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(reader->pictures); i++)
        if (put(reader, Py_NewRef(PyList_GET_ITEM(reader->pictures, i)), 1)) return -1;
    return PyList_SetSlice(reader->pictures, 0, PyList_GET_SIZE(reader->pictures), NULL);
}

static int add_part(Reader *reader, Slice text) {
    reader->before = reader->parts ? reader->last : 0;
    reader->last = reader->text.size;
    reader->parts++;
    return append(&reader->text, text.at, text.size);
}

static int add(Reader *reader, Slice text) {
    const Element *here = innermost(reader);
    if (!reader->parts) reader->at = *here;
    if (here->in_link) reader->links += characters(strip(text));
    Py_CLEAR(reader->tex);
    return add_part(reader, text);
}

static int end_line(Reader *reader, int preformatted) {
    if (!reader->parts && !PyList_GET_SIZE(reader->pictures)) return 0;
    if (!preformatted) return flush(reader);
    int ended = reader->text.size > reader->last && reader->text.data[reader->text.size - 1] == '\n';
    return reader->parts && !ended ? add_part(reader, (Slice){"\n", 1}) : 0;
}

static int enter(Reader *reader, const Tag *tag, const Traits *traits) {
    Element inside = *innermost(reader);
    if (end_line(reader, inside.preformatted)) return -1;
    if (depth(reader) > MAX_DEPTH) return reader->too_deep = 1, -1;
    int number = (int)(reader->containers.size / (Py_ssize_t)sizeof(Container));
    Container container = {inside.container, (int32_t)PyList_GET_SIZE(reader->blocks), 0};
    if (append(&reader->containers, (const char *)&container, sizeof container)) return -1;
    if (tag->flags & ROW) inside.row = ++reader->rows;
    else if (tag->flags & CELL) inside.cell = ++reader->cells;
    else if (tag->flags & GROUP) inside.group = number;
    inside.opened = inside.tag = tag->name;
    inside.near = both(&inside.own, &traits->hints);
    inside.hints = both(&inside.hints, &traits->hints);
    inside.own = traits->hints;
    inside.container = number;
    inside.preformatted |= traits->preformatted;
    inside.inline_ = 0;
    return append(&reader->open, (const char *)&inside, sizeof inside);
}

static int enter_inline(Reader *reader, const Tag *tag, const Traits *traits) {
    Element inside = *innermost(reader);
    inside.opened = tag->name;
    inside.hints = both(&inside.hints, &traits->hints);
    inside.near = both(&inside.near, &traits->hints);
    inside.in_link |= (tag->flags & LINK) != 0;
    inside.preformatted |= traits->preformatted;
    inside.inline_ = 1;
    return append(&reader->open, (const char *)&inside, sizeof inside);
}

static int close_element(Reader *reader) {
    Element closed = *innermost(reader);
    reader->open.size -= (Py_ssize_t)sizeof(Element);
    if (closed.inline_) return 0;
    if (end_line(reader, innermost(reader)->preformatted)) return -1;
    ((Container *)reader->containers.data)[closed.container].end = (int32_t)PyList_GET_SIZE(reader->blocks);
    if (depth(reader) < reader->shallowest) reader->shallowest = depth(reader);
    return 0;
}

/* A closing tag. What was left open inside is closed first, as where a stray quotation mark hid a tag. */
static int leave(Reader *reader, Slice name) {
    Py_ssize_t i = depth(reader) - 1;
    while (i >= 0 && !equal(open_elements(reader)[i].opened, name)) i--;
    if (i < 0) return 0;
    while (depth(reader) - 1 > i)
        if (close_element(reader)) return -1;
    return i > 0 ? close_element(reader) : 0;
}

/* TeX, unless the same was said another way just before. Takes the reference. */
static int add_tex(Reader *reader, PyObject *tex) {
    if (!tex) return -1;
    PyObject *essence = PyObject_CallOneArg(reader->tables->essence, tex);
    int failed = !essence || !PyUnicode_Check(essence) || !PyUnicode_Check(tex);
    if (!failed && PyUnicode_GET_LENGTH(essence) && (!reader->tex || PyUnicode_Compare(essence, reader->tex))) {
        Slice text;
        failed = !(text.at = PyUnicode_AsUTF8AndSize(tex, &text.size)) || add(reader, text);
        if (!failed) reader->tex = Py_NewRef(essence);
    }
    Py_XDECREF(essence);
    Py_DECREF(tex);
    return failed ? -1 : 0;
}

/* Whether the image may be a formula: what drawn_formula finds has one of these. */
static int maybe_formula(Slice attributes) {
    static const char *const signs[] = {"math", "tex", "equat", "formula"};
    const char *end = attributes.at + attributes.size;
    for (const char *at = attributes.at; at < end; at++) {
        if (*at == '\\' || *at == '$') return 1;
        char c = (char)(*at | 32);
        for (int i = 0; i < 4; i++) {
            Py_ssize_t length = (Py_ssize_t)strlen(signs[i]);
            if (c == signs[i][0] && end - at >= length && !strncasecmp(at, signs[i], (size_t)length)) return 1;
        }
    }
    return 0;
}

static int has_letter(Slice text) {
    const char *end = text.at + text.size;
    for (int bytes; text.at < end; text.at += bytes)
        if (Py_UNICODE_ISALNUM(decode(text.at, end, &bytes))) return 1;
    return 0;
}

static int picture(Reader *reader, Slice attributes) {
    if (maybe_formula(attributes)) {
        PyObject *given = string(attributes);
        PyObject *tex = given ? PyObject_CallOneArg(reader->tables->drawn_formula, given) : NULL;
        Py_XDECREF(given);
        if (!tex || !PyUnicode_Check(tex)) return Py_XDECREF(tex), -1;
        if (PyUnicode_GET_LENGTH(tex)) return add_tex(reader, tex);
        Py_DECREF(tex);
    }
    const char *end = attributes.at + attributes.size, *start = find(attributes, " alt=\""), *close = NULL;
    if (start) close = memchr(start + 6, '"', (size_t)(end - start - 6));
    if (!close) return 0;
    Buffer raw = {0};
    Buffer *done = &reader->done;
    done->size = 0;
    int failed = append(&raw, start + 6, close - start - 6);
    if (!failed) unescape(&raw, 0);
    failed = failed || append_words(done, (Slice){raw.data, raw.size});
    release(&raw);
    if (failed) return -1;
    Slice text = {done->data, done->size};
    if (!has_letter(text)) /* a smiley? */
        return characters(text) < 8 && reader->parts ? add_part(reader, text) : 0;
    PyObject *said = string(text);
    int known = said ? PySequence_Contains(reader->pictures, said) : -1;
    failed = known < 0 || (!known && PyList_Append(reader->pictures, said));
    Py_XDECREF(said);
    if (failed || known || reader->parts) return failed ? -1 : 0;
    reader->at = *innermost(reader);
    return flush(reader);
}

static int is_break(const Reader *reader, Py_ssize_t start, Py_ssize_t end) {
    return end - start == 1 && reader->text.data[start] == BREAK;
}

static int line_break(Reader *reader) {
    if (innermost(reader)->preformatted) return add(reader, (Slice){"\n", 1});
    if (!reader->parts) return 0;
    Slice last = {reader->text.data + reader->last, reader->text.size - reader->last};
    int doubled = is_break(reader, reader->last, reader->text.size);
    if (!doubled && reader->parts > 1 && is_break(reader, reader->before, reader->last))
        doubled = last.size && !strip(last).size;
    return doubled ? flush(reader) : add_part(reader, (Slice){"\x1f", 1}); /* an empty line ends the block */
}

static int void_element(Reader *reader, const Tag *tag) {
    if (tag->flags & IMAGE) return picture(reader, tag->attributes);
    if (tag->flags & RULE) return flush(reader);
    return tag->flags & LINE ? line_break(reader) : 0;
}

/* The tag that closes the element that opens at tag `start`, else the last tag. */
static Py_ssize_t end_of(Reader *reader, Py_ssize_t start) {
    const Tag *opened = tag_at(reader, start);
    Py_ssize_t inside = 1;
    for (Py_ssize_t i = start + 1; i < tag_count(reader); i++) {
        const Tag *tag = tag_at(reader, i);
        if (equal(tag->name, opened->name) && (inside += tag->closing ? -1 : 1) == 0) return i;
    }
    return tag_count(reader) - 1;
}

/* What formulas.formula makes of the tags from `start` to before `end`. */
static int formula(Reader *reader, Py_ssize_t start, Py_ssize_t end) {
    if (end <= start) end = start + 1;
    PyObject *lists[3] = {PyList_New(0), PyList_New(0), PyList_New(0)}; /* names, attributes, texts */
    int failed = !lists[0] || !lists[1] || !lists[2];
    for (Py_ssize_t i = start; !failed && i < end; i++) {
        const Tag *tag = tag_at(reader, i);
        Slice name = {tag->name.at - tag->closing, tag->name.size + tag->closing};
        PyObject *values[3] = {string(name), string(tag->attributes), string(text_after(reader, i))};
        for (int j = 0; j < 3; j++) {
            failed = failed || !values[j] || PyList_Append(lists[j], values[j]);
            Py_XDECREF(values[j]);
        }
    }
    PyObject *tex = NULL;
    if (!failed) tex = PyObject_CallFunctionObjArgs(reader->tables->formula, lists[0], lists[1], lists[2], NULL);
    for (int j = 0; j < 3; j++) Py_XDECREF(lists[j]);
    return add_tex(reader, tex);
}

static int read_one(Reader *reader, Py_ssize_t *position) {
    const Tag *tag = tag_at(reader, *position);
    if (tag->closing) return leave(reader, tag->name);
    if (tag->flags & VOID) return void_element(reader, tag);
    Traits traits = read_traits(reader->tables, tag);
    if (traits.skipped >= reader->least_skipped) {
        Py_ssize_t start = *position;
        *position = end_of(reader, start);
        return tag->flags & FORMULA ? formula(reader, start, *position) : 0;
    }
    return tag->flags & INLINE ? enter_inline(reader, tag, &traits) : enter(reader, tag, &traits);
}

static int maybe_add(Reader *reader, Slice text) {
    int blank = !reader->parts && !strip(text).size;
    return text.size && (!blank || innermost(reader)->preformatted) ? add(reader, text) : 0;
}

static int read_body(Reader *reader) {
    Element root = {.opened = {"body", 4}, .tag = {"body", 4}};
    Container whole = {-1, 0, 0};
    if (read_tags(reader->tables, reader->html, &reader->tags)) return -1;
    if (append(&reader->open, (const char *)&root, sizeof root)) return -1;
    if (append(&reader->containers, (const char *)&whole, sizeof whole)) return -1;
    reader->at = root;
    const char *end = tag_count(reader) ? tag_at(reader, 0)->start : reader->html.at + reader->html.size;
    if (maybe_add(reader, (Slice){reader->html.at, end - reader->html.at})) return -1;
    for (Py_ssize_t i = 0; i < tag_count(reader); i++)
        if (read_one(reader, &i) || maybe_add(reader, text_after(reader, i))) return -1;
    while (depth(reader) > 1)
        if (close_element(reader)) return -1;
    if (flush(reader)) return -1;
    ((Container *)reader->containers.data)->end = (int32_t)PyList_GET_SIZE(reader->blocks);
    return 0;
}

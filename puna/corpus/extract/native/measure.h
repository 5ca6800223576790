/* Numbers about the text of a block: the same as _counts, _signs and openings in features.py. */

enum { COLUMNS = 17 };

typedef struct {
    int words, commas, stops, lines, upper;
} Counts;

static Counts count(PyObject *text) {
    Counts counts = {.words = 1};
    int kind = PyUnicode_KIND(text), cased = 0, lower = 0;
    const void *data = PyUnicode_DATA(text);
    Py_UCS4 before = 0;
    for (Py_ssize_t i = 0; i < PyUnicode_GET_LENGTH(text); i++) {
        Py_UCS4 c = PyUnicode_READ(kind, data, i);
        counts.words += c == ' ';
        counts.lines += c == '\n';
        counts.commas += c == ',' || c == 0xFF0C || c == 0x3001;
        counts.stops += (c == ' ' && before == '.') || c == 0x3002;
        before = c;
        if (lower) continue;
        lower = Py_UNICODE_ISLOWER(c) || Py_UNICODE_ISTITLE(c);
        cased = cased || Py_UNICODE_ISUPPER(c);
    }
    counts.upper = cased && !lower;
    return counts;
}

static int ends_sentence(Py_UCS4 c) {
    return c == '.' || c == '!' || c == '?' || c == 0x3002 || c == 0xFF01 || c == 0xFF1F || c == 0x2026 || c == 0x964;
}

/* Whether the title, in lower case, has the text in it; -1 with an exception. */
static int in_title(PyObject *text, PyObject *title) {
    Py_ssize_t length = PyUnicode_GET_LENGTH(text);
    if (length <= 8 || length > PyUnicode_GET_LENGTH(title)) return 0;
    PyObject *lower = PyObject_CallMethod(text, "lower", NULL);
    int found = lower ? PyUnicode_Contains(title, lower) : -1;
    Py_XDECREF(lower);
    return found;
}

static int is_mark(const char *at, const char *end) {
    static const char *const marks = ".,:;!?()[]\"'|";
    if ((unsigned char)*at < 0x80) return strchr(marks, *at) != NULL && *at;
    int bytes;
    Py_UCS4 c = decode(at, end, &bytes);
    return c == 0xAB || c == 0xBB || c == 0x201C || c == 0x201D || c == 0x2022 || c == 0xB7;
}

static void opening_word(const Tables *tables, const char *at, const char *end, unsigned char *bits) {
    while (at < end && is_mark(at, end))
        do at++;
        while (at < end && is_continuation(*at));
    for (const char *last; end > at && is_mark(last = back(at, end), end);) end = last;
    int bit = map_get(&tables->openings, at, end - at);
    if (bit >= 0 && bit / 8 < tables->openings_width) bits[bit / 8] |= (unsigned char)(1 << bit % 8);
}

static void opening_words(const Tables *tables, const char *at, const char *end, unsigned char *bits) {
    while (at < end) {
        int bytes = space(at, end);
        if (bytes) {
            at += bytes;
            continue;
        }
        const char *word = at;
        while (at < end && !space(at, end)) {
            do at++;
            while (at < end && is_continuation(*at));
        }
        opening_word(tables, word, at, bits);
    }
}

static int openings(const Tables *tables, PyObject *text, unsigned char *bits) {
    enum { OPENING = 60 };
    if (PyUnicode_IS_ASCII(text)) {
        char start[OPENING];
        Py_ssize_t size = PyUnicode_GET_LENGTH(text) < OPENING ? PyUnicode_GET_LENGTH(text) : OPENING;
        const char *from = PyUnicode_DATA(text);
        for (Py_ssize_t i = 0; i < size; i++) start[i] = (char)(is_upper(from[i]) ? from[i] | 32 : from[i]);
        return opening_words(tables, start, start + size, bits), 0;
    }
    PyObject *start = PyUnicode_Substring(text, 0, OPENING);
    PyObject *lower = start ? PyObject_CallMethod(start, "lower", NULL) : NULL;
    Py_ssize_t size;
    const char *at = lower ? PyUnicode_AsUTF8AndSize(lower, &size) : NULL;
    if (at) opening_words(tables, at, at + size, bits);
    Py_XDECREF(start);
    Py_XDECREF(lower);
    return at ? 0 : -1;
}

/* A row of numbers and the bits of the opening of a block. */
static int measure(const Tables *tables, PyObject *block, PyObject *title, int32_t *row, unsigned char *bits) {
    if (!PyTuple_Check(block) || PyTuple_GET_SIZE(block) != 12) return PyErr_SetString(PyExc_TypeError, "a Block"), -1;
    PyObject *text = PyTuple_GET_ITEM(block, 0), *tag = PyTuple_GET_ITEM(block, 1);
    if (!PyUnicode_Check(text) || !PyUnicode_Check(tag) || !PyUnicode_GET_LENGTH(text))
        return PyErr_SetString(PyExc_TypeError, "a Block with a text and a tag"), -1;
    Py_ssize_t length = PyUnicode_GET_LENGTH(text);
    Py_UCS4 first = PyUnicode_READ_CHAR(text, 0), last = PyUnicode_READ_CHAR(text, length - 1);
    Py_ssize_t links = PyLong_AsSsize_t(PyTuple_GET_ITEM(block, 4));
    Counts counts = count(text);
    int titled = in_title(text, title);
    if (titled < 0 || openings(tables, text, bits)) return -1;
    int32_t values[COLUMNS] = {
        (int32_t)length, (int32_t)(links < length ? links : length), counts.words, counts.commas, counts.stops,
        counts.lines, (int32_t)PyLong_AsLong(PyTuple_GET_ITEM(block, 5)),
        (int32_t)PyLong_AsLong(PyTuple_GET_ITEM(block, 6)), ends_sentence(last), last == ':', Py_UNICODE_ISLOWER(first),
        counts.upper, Py_UNICODE_ISDIGIT(first), titled, PyTuple_GET_ITEM(block, 11) == Py_True,
        PyUnicode_CompareWithASCIIString(tag, "img") == 0, PyLong_AsLong(PyTuple_GET_ITEM(block, 8)) > 0,
    };
    memcpy(row, values, sizeof values);
    return PyErr_Occurred() ? -1 : 0;
}

/* Growable buffers, UTF-8 as Python sees it, and a hash table from strings to numbers. All UTF-8 here comes from Python
   and is well-formed; functions that can fail return -1 with a Python exception set. */

typedef struct {
    const char *at;
    Py_ssize_t size;
} Slice;

typedef struct {
    char *data;
    Py_ssize_t size, capacity;
} Buffer;

static int reserve(Buffer *buffer, Py_ssize_t more) {
    if (more <= buffer->capacity - buffer->size) return 0;
    if (more > PY_SSIZE_T_MAX / 2 - buffer->size) return PyErr_NoMemory(), -1;
    Py_ssize_t capacity = 2 * (buffer->size + more) + 64;
    char *data = PyMem_Realloc(buffer->data, (size_t)capacity);
    if (!data) return PyErr_NoMemory(), -1;
    buffer->data = data;
    buffer->capacity = capacity;
    return 0;
}

static int append(Buffer *buffer, const char *at, Py_ssize_t size) {
    if (reserve(buffer, size)) return -1;
    if (size) memcpy(buffer->data + buffer->size, at, (size_t)size);
    buffer->size += size;
    return 0;
}

static void release(Buffer *buffer) {
    PyMem_Free(buffer->data);
    *buffer = (Buffer){0};
}

static int equal(Slice a, Slice b) { return a.size == b.size && memcmp(a.at, b.at, (size_t)a.size) == 0; }

static const char *find(Slice in, const char *what) { return memmem(in.at, (size_t)in.size, what, strlen(what)); }

/* The character at `at`, and its bytes. */
static Py_UCS4 decode(const char *at, const char *end, int *bytes) {
    const unsigned char *c = (const unsigned char *)at;
    Py_ssize_t left = end - at;
    *bytes = 1;
    if (c[0] < 0xC0 || left < 2) return c[0];
    *bytes = 2;
    if (c[0] < 0xE0 || left < 3) return (Py_UCS4)(c[0] & 0x1F) << 6 | (c[1] & 0x3F);
    *bytes = 3;
    if (c[0] < 0xF0 || left < 4) return (Py_UCS4)(c[0] & 0x0F) << 12 | (Py_UCS4)(c[1] & 0x3F) << 6 | (c[2] & 0x3F);
    *bytes = 4;
    return (Py_UCS4)(c[0] & 7) << 18 | (Py_UCS4)(c[1] & 0x3F) << 12 | (Py_UCS4)(c[2] & 0x3F) << 6 | (c[3] & 0x3F);
}

/* Bytes of the white space character at `at` (what str.isspace says), 0 for any other. */
static int space(const char *at, const char *end) {
    unsigned char c = (unsigned char)*at;
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31);
    if (c < 0xC0) return 0; /* within a character */
    int bytes;
    Py_UCS4 letter = decode(at, end, &bytes);
    return Py_UNICODE_ISSPACE(letter) ? bytes : 0;
}

static int is_continuation(char c) { return ((unsigned char)c & 0xC0) == 0x80; }

/* Start of the character that ends before `at`. */
static const char *back(const char *start, const char *at) {
    do at--;
    while (at > start && is_continuation(*at));
    return at;
}

static Slice strip(Slice text) {
    const char *at = text.at, *end = at + text.size;
    for (int bytes; at < end && (bytes = space(at, end));) at += bytes;
    for (const char *last; end > at && space(last = back(at, end), end);) end = last;
    return (Slice){at, end - at};
}

static Py_ssize_t characters(Slice text) {
    Py_ssize_t count = 0;
    for (Py_ssize_t i = 0; i < text.size; i++) count += !is_continuation(text.at[i]);
    return count;
}

/* Append `text` with single blanks between its words and none around. */
static int append_words(Buffer *out, Slice text) {
    const char *at = text.at, *end = at + text.size;
    if (reserve(out, text.size + 1)) return -1;
    char *to = out->data + out->size, *start = to;
    while (at < end) {
        int bytes = space(at, end);
        if (bytes) {
            at += bytes;
            continue;
        }
        if (to > start) *to++ = ' ';
        do {
            *to++ = *at++;
            if ((unsigned char)to[-1] >= 0x80)
                while (at < end && is_continuation(*at)) *to++ = *at++;
        } while (at < end && !space(at, end));
    }
    out->size = to - out->data;
    return 0;
}

/* Put characters for the references that the parser writes (entities.py), from `start` on. */
static void unescape(Buffer *text, Py_ssize_t start) {
    static const struct {
        const char *name, *letter;
    } known[] = {{"&nbsp;", "\xC2\xA0"}, {"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&amp;", "&"}};
    if (text->size == start) return;
    char *at = memchr(text->data + start, '&', (size_t)(text->size - start)), *end = text->data + text->size;
    if (!at) return;
    char *to = at;
    while (at < end) {
        int i = *at == '&' ? 0 : 5;
        for (; i < 5; i++) {
            size_t length = strlen(known[i].name);
            if ((size_t)(end - at) >= length && !memcmp(at, known[i].name, length)) {
                for (const char *letter = known[i].letter; *letter;) *to++ = *letter++;
                at += length;
                break;
            }
        }
        if (i == 5) *to++ = *at++;
    }
    text->size = to - text->data;
}

/* A hash table with linear probing, filled once. Numbers are not negative. */
typedef struct {
    Py_ssize_t start, size;
    int value;
} Entry;

typedef struct {
    Entry *entries;
    size_t mask;
    Buffer keys;
} Map;

static size_t hash(const char *at, Py_ssize_t size) {
    uint64_t value = 14695981039346656037u; /* FNV-1a */
    for (Py_ssize_t i = 0; i < size; i++) value = (value ^ (unsigned char)at[i]) * 1099511628211u;
    return (size_t)(value ^ value >> 29);
}

/* The entry of a key, or the empty one where it would stand (size -1). */
static Entry *map_place(const Map *map, const char *at, Py_ssize_t size) {
    for (size_t i = hash(at, size) & map->mask;; i = (i + 1) & map->mask) {
        Entry *entry = &map->entries[i];
        if (entry->size < 0) return entry;
        if (entry->size == size && !memcmp(map->keys.data + entry->start, at, (size_t)size)) return entry;
    }
}

/* The number of a key, -1 where it has none. */
static int map_get(const Map *map, const char *at, Py_ssize_t size) {
    Entry *entry = map_place(map, at, size);
    return entry->size < 0 ? -1 : entry->value;
}

/* From a dict of str to int. */
static int map_fill(Map *map, PyObject *dict) {
    size_t slots = 16;
    while (slots < 4 * (size_t)PyDict_Size(dict)) slots *= 2;
    if (!(map->entries = PyMem_Calloc(slots, sizeof(Entry)))) return PyErr_NoMemory(), -1;
    map->mask = slots - 1;
    for (size_t i = 0; i < slots; i++) map->entries[i].size = -1;
    PyObject *key, *value;
    for (Py_ssize_t i = 0; PyDict_Next(dict, &i, &key, &value);) {
        Py_ssize_t size;
        const char *at = PyUnicode_AsUTF8AndSize(key, &size);
        long number = PyLong_AsLong(value);
        if (!at || (number == -1 && PyErr_Occurred())) return -1;
        Entry *entry = map_place(map, at, size);
        *entry = (Entry){map->keys.size, size, (int)number};
        if (append(&map->keys, at, size)) return -1;
    }
    return 0;
}

static void map_release(Map *map) {
    PyMem_Free(map->entries);
    release(&map->keys);
}

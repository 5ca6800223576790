/* Which blocks are alike: `alike` in features.py. */

enum { ALIKE = 18 };
enum { TEXT = 0, TAG = 1, HINTS = 2, NEAR = 3, LINKS = 4, DEPTH = 5, CONTAINER = 7 }; /* fields of a Block */

/* What blocks have in common: up to two objects, or NULL, and a number. */
typedef struct {
    PyObject *first, *second;
    Py_ssize_t number;
} Key;

typedef struct {
    int32_t count;
    int64_t text, links; /* characters */
} Sum;

static int same_object(PyObject *a, PyObject *b) { return a == b || PyObject_RichCompareBool(a, b, Py_EQ) == 1; }

static int same_key(const Key *a, const Key *b) {
    return a->number == b->number && same_object(a->first, b->first) && same_object(a->second, b->second);
}

static size_t hash_key(const Key *key) {
    uint64_t value = (uint64_t)key->number;
    if (key->first) value = value * 1099511628211u ^ (uint64_t)PyObject_Hash(key->first);
    if (key->second) value = value * 1099511628211u ^ (uint64_t)PyObject_Hash(key->second);
    value *= 0x9E3779B97F4A7C15u;
    return (size_t)(value ^ value >> 32);
}

/* Numbers the blocks by their keys, those of the same key alike: 0, 1, ... in the order of the page. `slots` is room
   for `mask` + 1 numbers, at least twice as many as blocks. */
static void number_keys(const Key *keys, Py_ssize_t count, int32_t *slots, size_t mask, int32_t *numbers) {
    int32_t known = 0;
    memset(slots, -1, (mask + 1) * sizeof *slots);
    for (Py_ssize_t i = 0; i < count; i++) {
        size_t at = hash_key(&keys[i]) & mask;
        while (slots[at] >= 0 && !same_key(&keys[slots[at]], &keys[i])) at = (at + 1) & mask;
        numbers[i] = slots[at] < 0 ? known++ : numbers[slots[at]];
        if (slots[at] < 0) slots[at] = (int32_t)i;
    }
}

static Key key_of(PyObject *block, int group, const Container *containers) {
    PyObject **fields = ((PyTupleObject *)block)->ob_item;
    if (group == 0) return (Key){fields[TAG], fields[NEAR], 0};
    if (group == 1) return (Key){fields[TAG], fields[HINTS], PyLong_AsSsize_t(fields[DEPTH])};
    int32_t parent = containers[PyLong_AsSsize_t(fields[CONTAINER])].parent;
    return (Key){NULL, NULL, parent < 0 ? 0 : parent};
}

/* 1 for an h1, 2 for h2 to h6, 0 for any other tag. */
static int heading(PyObject *tag) {
    if (PyUnicode_GET_LENGTH(tag) != 2 || PyUnicode_READ_CHAR(tag, 0) != 'h') return 0;
    Py_UCS4 level = PyUnicode_READ_CHAR(tag, 1);
    return level == '1' ? 1 : level >= '2' && level <= '6' ? 2 : 0;
}

/* Where each block stands: to the last h1, to the element with the most text of its own (the blocks of `numbers` that
   are `most`), and to the last heading. */
static void place(PyObject **blocks, Py_ssize_t count, const int32_t *numbers, int32_t most, int32_t *rows) {
    Py_ssize_t from = -1, to = -1, title = -1, last = -1;
    for (Py_ssize_t i = 0; i < count; i++)
        if (numbers[i] == most) {
            if (from < 0) from = i;
            to = i;
        }
    for (Py_ssize_t i = 0; i < count; i++, rows += ALIKE) {
        int kind = heading(PyTuple_GET_ITEM(blocks[i], TAG));
        if (kind == 1) title = i;
        if (kind == 2) last = i;
        rows[2] = title >= 0;
        rows[3] = title >= 0 ? (int32_t)(i - title) : 0;
        rows[4] = kind == 1;
        rows[5] = numbers[i] == most;
        rows[6] = (i > from) - (i < from);
        rows[7] = (i > to) - (i < to);
        rows[8] = (int32_t)(i - last);
    }
}

/* Room to compare blocks in. */
typedef struct {
    Key *keys;
    Sum *sums;
    int32_t *numbers, *slots;
    size_t mask;
} Room;

static void sum_up(PyObject **blocks, Py_ssize_t count, const int32_t *numbers, Sum *sums) {
    memset(sums, 0, (size_t)count * sizeof *sums);
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t length = PyUnicode_GET_LENGTH(PyTuple_GET_ITEM(blocks[i], TEXT));
        Py_ssize_t links = PyLong_AsSsize_t(PyTuple_GET_ITEM(blocks[i], LINKS));
        Sum *sum = &sums[numbers[i]];
        sum->count++;
        sum->text += length;
        sum->links += links < length ? links : length;
    }
}

static void compare_blocks(PyObject **blocks, Py_ssize_t count, const Container *containers, Room room, int32_t *rows) {
    for (Py_ssize_t i = 0; i < count; i++) room.keys[i] = (Key){PyTuple_GET_ITEM(blocks[i], TEXT), NULL, 0};
    number_keys(room.keys, count, room.slots, room.mask, room.numbers);
    sum_up(blocks, count, room.numbers, room.sums);
    for (Py_ssize_t i = 0; i < count; i++) {
        rows[i * ALIKE] = room.sums[room.numbers[i]].count;
        rows[i * ALIKE + 1] = (int32_t)PyLong_AsLong(PyTuple_GET_ITEM(blocks[i], CONTAINER));
    }
    for (int group = 0; group < 3; group++) {
        for (Py_ssize_t i = 0; i < count; i++) room.keys[i] = key_of(blocks[i], group, containers);
        number_keys(room.keys, count, room.slots, room.mask, room.numbers);
        sum_up(blocks, count, room.numbers, room.sums);
        for (Py_ssize_t i = 0; i < count; i++) {
            int32_t *row = rows + i * ALIKE + 9 + 3 * group;
            const Sum *sum = &room.sums[room.numbers[i]];
            row[0] = sum->count;
            row[1] = (int32_t)sum->text;
            row[2] = (int32_t)sum->links;
        }
    }
    int32_t most = 0; /* of the last group: the elements that have blocks of their own */
    for (Py_ssize_t i = 0; i < count && room.sums[i].count; i++)
        if (room.sums[i].text > room.sums[most].text) most = (int32_t)i;
    place(blocks, count, room.numbers, most, rows);
}

/* Whether it is a Block as the reader makes them, of one of so many containers. */
static int is_block(PyObject *block, Py_ssize_t containers) {
    if (!PyTuple_Check(block) || PyTuple_GET_SIZE(block) != 12) return 0;
    PyObject **fields = ((PyTupleObject *)block)->ob_item;
    if (!PyUnicode_Check(fields[TEXT]) || !PyUnicode_Check(fields[TAG])) return 0;
    if (!PyBytes_Check(fields[HINTS]) || !PyBytes_Check(fields[NEAR])) return 0;
    if (!PyLong_Check(fields[LINKS]) || !PyLong_Check(fields[DEPTH]) || !PyLong_Check(fields[CONTAINER])) return 0;
    Py_ssize_t container = PyLong_AsSsize_t(fields[CONTAINER]);
    return container >= 0 && container < containers;
}

static PyObject *alike(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *list, *containers;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &list, &PyBytes_Type, &containers)) return NULL;
    Py_ssize_t count = PyList_GET_SIZE(list);
    for (Py_ssize_t i = 0; i < count; i++)
        if (!is_block(PyList_GET_ITEM(list, i), PyBytes_GET_SIZE(containers) / (Py_ssize_t)sizeof(Container)))
            return PyErr_SetString(PyExc_TypeError, "blocks, and the containers they stand in"), NULL;
    size_t slots = 16;
    while (slots < 2 * (size_t)count) slots *= 2;
    Room room = {.mask = slots - 1};
    size_t size = (size_t)count * (sizeof *room.keys + sizeof *room.sums + sizeof *room.numbers);
    char *memory = PyMem_Malloc(size + slots * sizeof *room.slots);
    PyObject *made = PyBytes_FromStringAndSize(NULL, count * ALIKE * (Py_ssize_t)sizeof(int32_t));
    if (memory && made) {
        room.keys = (Key *)memory;
        room.sums = (Sum *)(room.keys + count);
        room.numbers = (int32_t *)(room.sums + count);
        room.slots = room.numbers + count;
        compare_blocks(((PyListObject *)list)->ob_item, count, (const Container *)PyBytes_AS_STRING(containers), room,
                       (int32_t *)PyBytes_AS_STRING(made));
    } else {
        Py_CLEAR(made);
        PyErr_NoMemory();
    }
    PyMem_Free(memory);
    return made;
}

/* The layers of the network: `forward` in layers.py, with the terms of every sum in the same order on any machine. */

#if defined(__x86_64__) && defined(__gnu_linux__)
#define EVERY_SET __attribute__((target_clones("avx2", "default"))) /* without FMA: the same bits from both */
#else
#define EVERY_SET
#endif

enum { LANES = 8, TOGETHER = 4 };
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    const float *numbers, *hints, *near, *openings, *first_bias;
    const float *conv, *conv_bias, *page, *page_bias, *last, *last_bias;
} Layers;

typedef struct {
    const float *inputs;
    PyObject **blocks;
    const unsigned char *openings;
    Py_ssize_t count, features, width, words, starts, depth; /* words of attributes, words that blocks begin with */
    float *state, *sum;                                      /* [count, width] each */
} Pass;

/* sum [rows, width] += x [rows, inputs] @ weights [inputs, width], for a few rows and 2 LANES columns. */
static inline __attribute__((always_inline)) void multiply_tile(float *sum, const float *x, const float *weights,
                                                                int rows, Py_ssize_t inputs, Py_ssize_t width) {
    Lanes left[TOGETHER], right[TOGETHER];
    for (int row = 0; row < rows; row++) {
        left[row] = *(const Lanes *)(sum + row * width);
        right[row] = *(const Lanes *)(sum + row * width + LANES);
    }
    for (Py_ssize_t i = 0; i < inputs; i++) {
        Lanes a = *(const Lanes *)(weights + i * width), b = *(const Lanes *)(weights + i * width + LANES);
        for (int row = 0; row < rows; row++) {
            left[row] += x[row * inputs + i] * a;
            right[row] += x[row * inputs + i] * b;
        }
    }
    for (int row = 0; row < rows; row++) {
        *(Lanes *)(sum + row * width) = left[row];
        *(Lanes *)(sum + row * width + LANES) = right[row];
    }
}

EVERY_SET static void multiply(float *sum, const float *x, const float *weights, Py_ssize_t rows, Py_ssize_t inputs,
                               Py_ssize_t width) {
    Py_ssize_t row = 0;
    for (; row + TOGETHER <= rows; row += TOGETHER)
        for (Py_ssize_t column = 0; column < width; column += 2 * LANES)
            multiply_tile(sum + row * width + column, x + row * inputs, weights + column, TOGETHER, inputs, width);
    for (; row < rows; row++)
        for (Py_ssize_t column = 0; column < width; column += 2 * LANES)
            multiply_tile(sum + row * width + column, x + row * inputs, weights + column, 1, inputs, width);
}

/* to [width] += the sum of the rows of weights [count, width] whose bits are set; in `sum` is room for it. */
EVERY_SET static void add_bag(float *to, float *sum, const unsigned char *bits, Py_ssize_t count, const float *weights,
                              Py_ssize_t width) {
    memset(sum, 0, (size_t)width * sizeof *sum);
    for (Py_ssize_t byte = 0; 8 * byte < count; byte++)
        for (unsigned left = bits[byte]; left; left &= left - 1) {
            Py_ssize_t bit = 8 * byte + __builtin_ctz(left);
            if (bit >= count) break;
            for (Py_ssize_t i = 0; i < width; i += LANES)
                *(Lanes *)(sum + i) += *(const Lanes *)(weights + bit * width + i);
        }
    for (Py_ssize_t i = 0; i < width; i += LANES) *(Lanes *)(to + i) += *(const Lanes *)(sum + i);
}

static float positive(float x) { return x > 0 ? x : 0; }

static void first_layer(const Pass *pass, const Layers *layers) {
    Py_ssize_t width = pass->width, bytes = (pass->starts + 7) / 8;
    memset(pass->state, 0, (size_t)(pass->count * width) * sizeof(float));
    multiply(pass->state, pass->inputs, layers->numbers, pass->count, pass->features, width);
    for (Py_ssize_t row = 0; row < pass->count; row++) {
        float *state = pass->state + row * width;
        PyObject *hints = PyTuple_GET_ITEM(pass->blocks[row], HINTS), *near = PyTuple_GET_ITEM(pass->blocks[row], NEAR);
        for (Py_ssize_t i = 0; i < width; i++) state[i] += layers->first_bias[i];
        add_bag(state, pass->sum, (unsigned char *)PyBytes_AS_STRING(hints), pass->words, layers->hints, width);
        add_bag(state, pass->sum, (unsigned char *)PyBytes_AS_STRING(near), pass->words, layers->near, width);
        add_bag(state, pass->sum, pass->openings + row * bytes, pass->starts, layers->openings, width);
        for (Py_ssize_t i = 0; i < width; i++) state[i] = positive(state[i]);
    }
}

static void convolution(const Pass *pass, const Layers *layers, Py_ssize_t layer) {
    Py_ssize_t width = pass->width, count = pass->count, dilation = (Py_ssize_t)1 << layer;
    const float *bias = layers->conv_bias + layer * width;
    memset(pass->sum, 0, (size_t)(count * width) * sizeof(float));
    for (Py_ssize_t i = 0; i < 3; i++) {
        const float *weights = layers->conv + (3 * layer + i) * width * width;
        Py_ssize_t shift = (i - 1) * dilation, start = shift < 0 ? -shift : 0, end = shift > 0 ? count - shift : count;
        if (start < end)
            multiply(pass->sum + start * width, pass->state + (start + shift) * width, weights, end - start, width,
                     width);
    }
    for (Py_ssize_t row = 0; row < count; row++)
        for (Py_ssize_t i = 0; i < width; i++)
            pass->state[row * width + i] += positive(pass->sum[row * width + i] + bias[i]);
}

/* What the whole page tells: its mean and its greatest numbers. */
static void page_layer(const Pass *pass, const Layers *layers) {
    Py_ssize_t width = pass->width;
    float *sum = pass->sum, *mean = sum + width, *greatest = mean + width; /* the room of three rows */
    memset(sum, 0, (size_t)(2 * width) * sizeof *sum);
    memcpy(greatest, pass->state, (size_t)width * sizeof *greatest);
    for (Py_ssize_t row = 0; row < pass->count; row++)
        for (Py_ssize_t i = 0; i < width; i++) {
            float value = pass->state[row * width + i];
            mean[i] += value;
            if (value > greatest[i]) greatest[i] = value;
        }
    for (Py_ssize_t i = 0; i < width; i++) mean[i] /= (float)pass->count;
    multiply(sum, mean, layers->page, 1, 2 * width, width);
    for (Py_ssize_t row = 0; row < pass->count; row++)
        for (Py_ssize_t i = 0; i < width; i++) pass->state[row * width + i] += positive(sum[i] + layers->page_bias[i]);
}

static void pass_forward(const Pass *pass, const Layers *layers, float *logits) {
    first_layer(pass, layers);
    for (Py_ssize_t layer = 0; layer < pass->depth; layer++) {
        convolution(pass, layers, layer);
        if (layer == pass->depth / 2) page_layer(pass, layers);
    }
    for (Py_ssize_t row = 0; row < pass->count; row++) {
        const float *state = pass->state + row * pass->width;
        logits[row] = 0;
        for (Py_ssize_t i = 0; i < pass->width; i++) logits[row] += state[i] * layers->last[i];
        logits[row] += *layers->last_bias;
    }
}

/* A layer of so many numbers; NULL with an exception where the dict has no such. */
static const float *layer_of(PyObject *layers, const char *name, Py_ssize_t size, Py_buffer *view) {
    PyObject *array = PyDict_GetItemString(layers, name);
    if (!array || PyObject_GetBuffer(array, view, PyBUF_SIMPLE)) {
        if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "there is no layer %s", name);
        return NULL;
    }
    if (view->len == size * (Py_ssize_t)sizeof(float)) return view->buf;
    return PyErr_Format(PyExc_ValueError, "%s is to be of %zd numbers", name, size), NULL;
}

/* The blocks' sets of bits are as wide as the layers. */
static int fit(const Pass *pass) {
    for (Py_ssize_t i = 0; i < pass->count; i++) {
        PyObject *block = pass->blocks[i];
        if (!is_block(block, PY_SSIZE_T_MAX)) return 0;
        if (PyBytes_GET_SIZE(PyTuple_GET_ITEM(block, HINTS)) < (pass->words + 7) / 8) return 0;
        if (PyBytes_GET_SIZE(PyTuple_GET_ITEM(block, NEAR)) < (pass->words + 7) / 8) return 0;
    }
    return 1;
}

static PyObject *forward(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *dict, *list, *made = NULL;
    Py_buffer inputs, openings;
    Pass pass = {0};
    if (!PyArg_ParseTuple(args, "O!y*O!y*nnnn", &PyDict_Type, &dict, &inputs, &PyList_Type, &list, &openings,
                          &pass.width, &pass.words, &pass.starts, &pass.depth))
        return NULL;
    Py_ssize_t width = pass.width, square = width * width;
    Py_buffer views[11] = {0};
    Layers layers;
    pass.count = PyList_GET_SIZE(list);
    pass.blocks = ((PyListObject *)list)->ob_item;
    pass.inputs = inputs.buf;
    pass.openings = openings.buf;
    pass.features = pass.count ? inputs.len / (Py_ssize_t)sizeof(float) / pass.count : 0;
    struct {
        const float **to;
        const char *name;
        Py_ssize_t size;
    } known[11] = {
        {&layers.numbers, "numbers", pass.features * width}, {&layers.hints, "hints", pass.words * width},
        {&layers.near, "near", pass.words * width}, {&layers.openings, "openings", pass.starts * width},
        {&layers.first_bias, "first_bias", width}, {&layers.conv, "conv", 3 * pass.depth * square},
        {&layers.conv_bias, "conv_bias", pass.depth * width}, {&layers.page, "page", 2 * square},
        {&layers.page_bias, "page_bias", width}, {&layers.last, "last", width}, {&layers.last_bias, "last_bias", 1},
    };
    int failed = 0;
    for (int i = 0; i < 11 && !failed; i++) {
        *known[i].to = layer_of(dict, known[i].name, known[i].size, &views[i]);
        failed = !*known[i].to;
    }
    if (!failed && (width % (2 * LANES) || !fit(&pass) || openings.len != pass.count * ((pass.starts + 7) / 8))) {
        PyErr_SetString(PyExc_ValueError, "blocks that do not fit the layers");
        failed = 1;
    }
    if (!failed) {
        Py_ssize_t rows = pass.count > 3 ? pass.count : 3; /* the page layer needs the room of three */
        pass.state = PyMem_Malloc((size_t)(pass.count + rows) * (size_t)width * sizeof(float));
        made = PyBytes_FromStringAndSize(NULL, pass.count * (Py_ssize_t)sizeof(float));
        if (pass.state && made) {
            pass.sum = pass.state + pass.count * width;
            pass_forward(&pass, &layers, (float *)PyBytes_AS_STRING(made));
        } else {
            Py_CLEAR(made);
            PyErr_NoMemory();
        }
        PyMem_Free(pass.state);
    }
    for (int i = 0; i < 11; i++)
        if (views[i].obj) PyBuffer_Release(&views[i]);
    PyBuffer_Release(&inputs);
    PyBuffer_Release(&openings);
    return made;
}

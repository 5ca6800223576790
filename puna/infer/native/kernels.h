/* Products of packed matrices with a few rows of activations, and the vector helpers of the rest.

   Included once per instruction set by native.c, which sets NAME (suffix of every function), TARGET (attribute that
   lets the compiler use the set), LANES (fp32 numbers in a register), TALL (rows of one tile) and DOT_BF16, DOT_INT8,
   WIDE (AVX-512) and HALF (AVX2) (instructions that have no C form). Everything else is written on vectors that fill a
   register: wider ones GCC would keep in memory, at a tenth of the speed.

   A matrix [outputs, inputs] is packed in panels of 32 outputs, and a panel in steps of 4 bytes an output: 1 fp32, 2
   bf16 or 4 int8 inputs. So memory is read strictly in order whatever the number of rows, a step is vectors whose
   lanes are outputs, and no sum across lanes is needed. Each output adds up its inputs in order: a row's result does
   not depend on the rows beside it, on the number of threads, or on the tile. */

#define INLINE static inline __attribute__((always_inline)) TARGET

typedef float VF __attribute__((vector_size(4 * LANES)));
typedef int32_t VI __attribute__((vector_size(4 * LANES)));
typedef uint32_t VU __attribute__((vector_size(4 * LANES)));
typedef int16_t VS __attribute__((vector_size(4 * LANES)));
typedef uint16_t VH __attribute__((vector_size(2 * LANES)));
typedef int8_t VB __attribute__((vector_size(LANES)));
typedef float NAME(floats_unaligned) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t NAME(halves_unaligned) __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t NAME(bytes_unaligned) __attribute__((vector_size(LANES), aligned(1), may_alias));

INLINE VF NAME(load)(const float *p) { return *(const NAME(floats_unaligned) *)p; }
INLINE void NAME(store)(float *p, VF v) { *(NAME(floats_unaligned) *)p = v; }
INLINE VF NAME(select)(VI mask, VF yes, VF no) { return (VF)((mask & (VI)yes) | (~mask & (VI)no)); }

INLINE VF NAME(spread)(float x) {
#if WIDE
    return (VF)_mm512_set1_ps(x);
#elif HALF
    return (VF)_mm256_set1_ps(x);
#else
    return (VF){x, x, x, x};
#endif
}

/* a * b + c, rounded once where the set has such an instruction. native.c is compiled with -ffp-contract=off, else the
   compiler would choose for each tile by itself, and results depend on a row's neighbours. */
INLINE VF NAME(fma)(VF a, VF b, VF c) {
#if WIDE
    return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif HALF
    return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (VF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* bf16 to fp32 */
INLINE VF NAME(widen)(VH half) {
#if WIDE
    return (VF)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#elif HALF
    return (VF)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)half), 16);
#else
    return (VF)(__builtin_convertvector(half, VU) << 16);
#endif
}

INLINE float NAME(sum)(VF v) {
    float lane[LANES];
    NAME(store)(lane, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

INLINE float NAME(maximum)(VF v) {
    float lane[LANES];
    NAME(store)(lane, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

/* e^x to 2 units in the last place: 2^n times the Taylor series of e^r, |r| <= ln 2 / 2. Below -87 it gives e^-87. */
INLINE VF NAME(exponential)(VF x) {
    const VF zero = {0}, low = zero - 87.0f, high = zero + 88.0f;
    x = NAME(select)(x < low, low, NAME(select)(x > high, high, x));
    VF shifted = x * 1.44269504f + 12582912.0f; /* adding 1.5 * 2^23 rounds to an integer, kept in the low bits */
    VF n = shifted - 12582912.0f;
    VF r = x - n * 0.693359375f + n * 2.12194440e-4f;
    const float factor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    VF series = zero + 1.0f / 5040;
    for (int i = 0; i < 7; i++) series = NAME(fma)(series, r, zero + factor[i]);
    return (VF)((VI)series + ((VI)shifted << 23));
}

/* acc[output] += the pairs of four int8, as u8 weights times s8 activations */
INLINE VI NAME(dot_int8)(VI acc, VI w, int32_t x) {
#if DOT_INT8
    return (VI)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(x));
#elif WIDE || HALF
    /* bytes 0 and 2, then 1 and 3, as 16-bit numbers: products of pairs are summed without overflow */
    VI all = (VI){0} + x, mask = (VI){0} + 0x00ff00ff;
    VS even = (VS)(w & mask), odd = (VS)(((VU)w >> 8) & (VU)mask);
    VS x_even = ((VS)all << 8) >> 8, x_odd = (VS)all >> 8;
#if WIDE
    acc += (VI)_mm512_madd_epi16((__m512i)even, (__m512i)x_even);
    return acc + (VI)_mm512_madd_epi16((__m512i)odd, (__m512i)x_odd);
#else
    acc += (VI)_mm256_madd_epi16((__m256i)even, (__m256i)x_even);
    return acc + (VI)_mm256_madd_epi16((__m256i)odd, (__m256i)x_odd);
#endif
#else
    for (int i = 0; i < 4; i++) acc += (VI)(((VU)w >> (8 * i)) & 255) * (int32_t)(int8_t)(x >> (8 * i));
    return acc;
#endif
}

/* acc[output] += the two bf16 products of a step */
INLINE VI NAME(dot_bf16)(VI acc, VI w, int32_t x) {
#if DOT_BF16
    return (VI)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x));
#else
    union { int32_t bits; float value; } first = {(int32_t)((uint32_t)x << 16)}, second = {x & ~0xffff};
    VF sum = NAME(fma)((VF)((VU)w << 16), NAME(spread)(first.value), (VF)acc);
    return (VI)NAME(fma)((VF)(w & ~0xffff), NAME(spread)(second.value), sum);
#endif
}

INLINE VI NAME(dot)(int kind, VI acc, VI w, const uint8_t *x) {
    if (kind == F32) return (VI)NAME(fma)((VF)w, NAME(spread)(*(const float *)x), (VF)acc);
    if (kind == BF16) return NAME(dot_bf16)(acc, w, *(const int32_t *)x);
    if (kind == INT8) return NAME(dot_int8)(acc, w, *(const int32_t *)x);
    for (int i = 0; i < 4; i++) { /* INT8_WEIGHTS: byte i, sign extended, times fp32 */
        VI byte = (VI)((VU)w << (24 - 8 * i)) >> 24;
        acc = (VI)NAME(fma)(__builtin_convertvector(byte, VF), NAME(spread)(((const float *)x)[i]), (VF)acc);
    }
    return acc;
}

/* One panel times `rows` rows of x (a constant after inlining): y [rows, 32], or y += if `add`. */
INLINE void NAME(tile)(int kind, int rows, const Matrix *m, int64_t panel, const Rows *x, int64_t row, float *y,
                       int64_t y_stride, int add) {
    const int x_bytes = kind == INT8_WEIGHTS ? 16 : 4;
    const VI *w = (const VI *)(m->words + panel * m->steps * 128), *end = w + PARTS * m->steps;
    const uint8_t *at = x->data + row * x->stride;
    VI acc[TALL][PARTS] = {{{0}}};
    for (; w < end; w += PARTS, at += x_bytes) {
        /* the processor's own prefetching stops at each page; with several rows the arithmetic hides the wait */
        __builtin_prefetch((const char *)w + PREFETCH);
        __builtin_prefetch((const char *)w + PREFETCH + 64);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int part = 0; part < PARTS; part++)
                acc[r][part] = NAME(dot)(kind, acc[r][part], w[part], at + r * x->stride);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int part = 0; part < PARTS; part++) {
            float *out = y + r * y_stride + LANES * part;
            VF value = (VF)acc[r][part];
            if (kind == INT8) /* the weights are stored plus 128 */
                value = __builtin_convertvector(acc[r][part] - 128 * x->sum[row + r], VF) * x->scale[row + r];
            if (kind >= INT8) value *= NAME(load)(m->scale + panel * 32 + LANES * part);
            NAME(store)(out, add ? NAME(load)(out) + value : value);
        }
}

#define TILE(kind, rows) case 16 * kind + rows: \
    NAME(tile)(kind, rows, m, panel, x, row, y + row * y_stride, y_stride, add); break;
#define TILES(kind) TILE(kind, 1) TILES_2(kind) TILES_3(kind) TILES_8(kind)
#if TALL >= 2
#define TILES_2(kind) TILE(kind, 2)
#else
#define TILES_2(kind)
#endif
#if TALL >= 3
#define TILES_3(kind) TILE(kind, 3)
#else
#define TILES_3(kind)
#endif
#if TALL >= 8
#define TILES_8(kind) TILE(kind, 4) TILE(kind, 8)
#else
#define TILES_8(kind)
#endif

/* y [rows, 32] (+)= the panel's product with x */
static TARGET void NAME(product)(const Matrix *m, int64_t panel, const Rows *x, int64_t rows, float *y,
                                 int64_t y_stride, int add) {
    int height = TALL;
    for (int64_t row = 0; row < rows; row += height) {
        while (height > rows - row) height = height == 8 ? 4 : height - 1;
        switch (16 * m->kind + height) { TILES(F32) TILES(BF16) TILES(INT8) TILES(INT8_WEIGHTS) }
    }
}

#undef TILE
#undef TILES
#undef TILES_2
#undef TILES_3
#undef TILES_8

/* Row `row` of x from n fp32 numbers (n a multiple of 32) in the form that the matrix's kind multiplies with. */
static TARGET void NAME(prepare)(int kind, const float *from, int64_t n, Rows *x, int64_t row) {
    uint8_t *to = x->data + row * x->stride;
    if (kind == F32 || kind == INT8_WEIGHTS) memcpy(to, from, n * 4);
    if (kind == BF16)
        for (int64_t i = 0; i < n; i += LANES) { /* to the nearest, ties to even */
            VU bits = (VU)NAME(load)(from + i);
            bits += 0x7fff + ((bits >> 16) & 1);
            *(NAME(halves_unaligned) *)(to + 2 * i) = __builtin_convertvector(bits >> 16, VH);
        }
    if (kind != INT8) return;
    VF largest = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        VF size = (VF)((VI)NAME(load)(from + i) & 0x7fffffff);
        largest = NAME(select)(size > largest, size, largest);
    }
    float most = NAME(maximum)(largest), inverse = most > 0 ? 127 / most : 0;
    VI sum = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        VI q = (VI)(NAME(load)(from + i) * inverse + 12582912.0f) - 0x4b400000; /* rounds as in exponential() */
        *(NAME(bytes_unaligned) *)(to + i) = __builtin_convertvector(q, VB);
        sum += q;
    }
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    x->sum[row] = total;
    x->scale[row] = most / 127;
}

/* Products of packed matrices with a few rows of activations, and the vector helpers of the rest.

   Included once per instruction set by native.c, which sets NAME (suffix of every function), TARGET (attribute that
   lets the compiler use the set), TALL (rows of one tile) and DOT_BF16, DOT_INT8, WIDE (AVX-512) and HALF
   (AVX2) (instructions that have no C form). Everything else is written on vectors of 16 numbers, which the compiler splits into what the
   set has: one zmm, two ymm, four xmm or NEON registers.

   A matrix [outputs, inputs] is packed in panels of 32 outputs, and a panel in steps of 4 bytes an output: 1 fp32, 2
   bf16 or 4 int8 inputs. So memory is read strictly in order whatever the number of rows, a step is two vectors whose
   lanes are outputs, and no sum across lanes is needed. Each output adds up its inputs in order: a row's result does
   not depend on the rows beside it, on the number of threads, or on the tile. */

#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE v16f NAME(load)(const float *p) { return *(const v16f_unaligned *)p; }
INLINE void NAME(store)(float *p, v16f v) { *(v16f_unaligned *)p = v; }
INLINE v16f NAME(select)(v16i mask, v16f yes, v16f no) { return (v16f)((mask & (v16i)yes) | (~mask & (v16i)no)); }

INLINE v16f NAME(spread)(float x) { return (v16f){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

/* a * b + c, rounded once where the set has such an instruction. native.c is compiled with -ffp-contract=off, else the
   compiler would choose for each tile by itself, and results depend on a row's neighbours. */
INLINE v16f NAME(fma)(v16f a, v16f b, v16f c) {
#if WIDE
    return (v16f)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif HALF
    union { v16f all; __m256 half[2]; } x = {a}, y = {b}, z = {c};
    for (int i = 0; i < 2; i++) z.half[i] = _mm256_fmadd_ps(x.half[i], y.half[i], z.half[i]);
    return z.all;
#elif defined(__aarch64__)
    union { v16f all; float32x4_t quarter[4]; } x = {a}, y = {b}, z = {c};
    for (int i = 0; i < 4; i++) z.quarter[i] = vfmaq_f32(z.quarter[i], x.quarter[i], y.quarter[i]);
    return z.all;
#else
    return a * b + c;
#endif
}

/* 16 numbers of bf16 to fp32 */
INLINE v16f NAME(widen)(v16h half) {
#if WIDE
    return (v16f)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#else
    return (v16f)(__builtin_convertvector(half, v16u) << 16);
#endif
}

INLINE float NAME(sum)(v16f v) {
    float lane[16];
    NAME(store)(lane, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

INLINE float NAME(maximum)(v16f v) {
    float lane[16];
    NAME(store)(lane, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

/* e^x to 2 units in the last place: 2^n times the Taylor series of e^r, |r| <= ln 2 / 2. Below -87 it gives e^-87. */
INLINE v16f NAME(exponential)(v16f x) {
    const v16f zero = {0}, low = zero - 87.0f, high = zero + 88.0f;
    x = NAME(select)(x < low, low, NAME(select)(x > high, high, x));
    v16f shifted = x * 1.44269504f + 12582912.0f; /* adding 1.5 * 2^23 rounds to an integer, kept in the low bits */
    v16f n = shifted - 12582912.0f;
    v16f r = x - n * 0.693359375f + n * 2.12194440e-4f;
    const float factor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    v16f series = zero + 1.0f / 5040;
    for (int i = 0; i < 7; i++) series = NAME(fma)(series, r, zero + factor[i]);
    return (v16f)((v16i)series + ((v16i)shifted << 23));
}

/* acc[output] += the pairs of four int8, as u8 weights times s8 activations */
INLINE v16i NAME(dot_int8)(v16i acc, v16i w, int32_t x) {
#if DOT_INT8
    return (v16i)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(x));
#elif WIDE || HALF
    /* bytes 0 and 2, then 1 and 3, as 16-bit numbers: products of pairs are summed without overflow */
    v16i all = (v16i){0} + x, mask = (v16i){0} + 0x00ff00ff;
    v32s even = (v32s)(w & mask), odd = (v32s)(((v16u)w >> 8) & (v16u)mask);
    v32s x_even = ((v32s)all << 8) >> 8, x_odd = (v32s)all >> 8;
#if WIDE
    acc += (v16i)_mm512_madd_epi16((__m512i)even, (__m512i)x_even);
    return acc + (v16i)_mm512_madd_epi16((__m512i)odd, (__m512i)x_odd);
#else
    union { v32s all; __m256i half[2]; } a = {even}, b = {x_even}, c = {odd}, d = {x_odd};
    union { __m256i half[2]; v16i all; } sum;
    for (int i = 0; i < 2; i++)
        sum.half[i] = _mm256_add_epi32(_mm256_madd_epi16(a.half[i], b.half[i]), _mm256_madd_epi16(c.half[i], d.half[i]));
    return acc + sum.all;
#endif
#else
    for (int i = 0; i < 4; i++) acc += (v16i)(((v16u)w >> (8 * i)) & 255) * (int32_t)(int8_t)(x >> (8 * i));
    return acc;
#endif
}

/* acc[output] += the two bf16 products of a step */
INLINE v16i NAME(dot_bf16)(v16i acc, v16i w, int32_t x) {
#if DOT_BF16
    return (v16i)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x));
#else
    union { int32_t bits; float value; } first = {(int32_t)((uint32_t)x << 16)}, second = {x & ~0xffff};
    v16f sum = NAME(fma)((v16f)((v16u)w << 16), NAME(spread)(first.value), (v16f)acc);
    return (v16i)NAME(fma)((v16f)(w & ~0xffff), NAME(spread)(second.value), sum);
#endif
}

INLINE v16i NAME(dot)(int kind, v16i acc, v16i w, const uint8_t *x) {
    if (kind == F32) return (v16i)NAME(fma)((v16f)w, NAME(spread)(*(const float *)x), (v16f)acc);
    if (kind == BF16) return NAME(dot_bf16)(acc, w, *(const int32_t *)x);
    if (kind == INT8) return NAME(dot_int8)(acc, w, *(const int32_t *)x);
    for (int i = 0; i < 4; i++) { /* INT8_WEIGHTS: byte i, sign extended, times fp32 */
        v16i byte = (v16i)((v16u)w << (24 - 8 * i)) >> 24;
        acc = (v16i)NAME(fma)(__builtin_convertvector(byte, v16f), NAME(spread)(((const float *)x)[i]), (v16f)acc);
    }
    return acc;
}

/* One panel times `rows` rows of x (a constant after inlining): y [rows, 32], or y += if `add`. */
INLINE void NAME(tile)(int kind, int rows, const Matrix *m, int64_t panel, const Rows *x, int64_t row, float *y,
                       int64_t y_stride, int add) {
    const int x_bytes = kind == INT8_WEIGHTS ? 16 : 4;
    const v16i *w = (const v16i *)(m->words + panel * m->steps * 128), *end = w + 2 * m->steps;
    const uint8_t *at = x->data + row * x->stride;
    v16i acc[TALL][2] = {{{0}}};
    for (; w < end; w += 2, at += x_bytes) {
        /* the processor's own prefetching stops at each page; with several rows the arithmetic hides the wait */
        __builtin_prefetch((const char *)w + PREFETCH);
        __builtin_prefetch((const char *)w + PREFETCH + 64);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            for (int half = 0; half < 2; half++)
                acc[r][half] = NAME(dot)(kind, acc[r][half], w[half], at + r * x->stride);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) {
            float *out = y + r * y_stride + 16 * half;
            v16f value = (v16f)acc[r][half];
            if (kind == INT8) /* the weights are stored plus 128 */
                value = __builtin_convertvector(acc[r][half] - 128 * x->sum[row + r], v16f) * x->scale[row + r];
            if (kind >= INT8) value *= NAME(load)(m->scale + panel * 32 + 16 * half);
            NAME(store)(out, add ? NAME(load)(out) + value : value);
        }
}

#define TILE(kind, rows) case 16 * kind + rows: \
    NAME(tile)(kind, rows, m, panel, x, row, y + row * y_stride, y_stride, add); break;
#define TILES(kind) TILE(kind, 1) TILES_2(kind) TILES_8(kind)
#if TALL >= 2
#define TILES_2(kind) TILE(kind, 2)
#else
#define TILES_2(kind)
#endif
#if TALL >= 8
#define TILES_8(kind) TILE(kind, 3) TILE(kind, 4) TILE(kind, 8)
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
#undef TILES_8

/* Row `row` of x from n fp32 numbers (n a multiple of 32) in the form that the matrix's kind multiplies with. */
static TARGET void NAME(prepare)(int kind, const float *from, int64_t n, Rows *x, int64_t row) {
    uint8_t *to = x->data + row * x->stride;
    if (kind == F32 || kind == INT8_WEIGHTS) memcpy(to, from, n * 4);
    if (kind == BF16)
        for (int64_t i = 0; i < n; i += 16) { /* to the nearest, ties to even */
            v16u bits = (v16u)NAME(load)(from + i);
            bits += 0x7fff + ((bits >> 16) & 1);
            *(v16h_unaligned *)(to + 2 * i) = __builtin_convertvector(bits >> 16, v16h);
        }
    if (kind != INT8) return;
    v16f largest = {0};
    for (int64_t i = 0; i < n; i += 16) {
        v16f size = (v16f)((v16i)NAME(load)(from + i) & 0x7fffffff);
        largest = NAME(select)(size > largest, size, largest);
    }
    float most = NAME(maximum)(largest), inverse = most > 0 ? 127 / most : 0;
    v16i sum = {0};
    for (int64_t i = 0; i < n; i += 16) {
        v16i q = (v16i)(NAME(load)(from + i) * inverse + 12582912.0f) - 0x4b400000; /* rounds as in exponential() */
        *(v16b_unaligned *)(to + i) = __builtin_convertvector(q, v16b);
        sum += q;
    }
    int32_t total = 0;
    for (int i = 0; i < 16; i++) total += sum[i];
    x->sum[row] = total;
    x->scale[row] = most / 127;
}

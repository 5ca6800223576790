/* One step of a Llama over paged keys and values, for any mix of prompts and single tokens. Included by native.c after
   kernels.h, once per instruction set. Every thread runs forward() and takes shares of each phase; meet() lets none
   begin a phase before all have ended the one before. Arithmetic is fp32 but for the products of packed matrices. */

/* LANES numbers of a cached vector of n, from number `at` on, zero past its end; kind is a constant after inlining */
INLINE VF NAME(cached)(int kind, const void *cache, int64_t offset, int64_t at, int64_t n) {
    const float *single = (const float *)cache + offset;
    const uint16_t *half = (const uint16_t *)cache + offset;
    if (at + LANES <= n)
        return kind == F32 ? NAME(load)(single + at) : NAME(widen)(*(const NAME(halves_unaligned) *)(half + at));
    float lane[LANES] = {0};
    for (int64_t i = at; i < n; i++) lane[i - at] = kind == F32 ? single[i] : from_bf16(half[i]);
    return NAME(load)(lane);
}

/* Keys and values of a chunk as panels in fp32. In those of keys the outputs are 32 keys: LANES x LANES numbers at a
   time are transposed by rounds of interleaving. In those of values they are 32 of the head's dimensions. */
INLINE void NAME(unpack)(int kind, const void *cache, const int64_t *offset, int64_t to_values, int64_t size, int64_t n,
                         float *keys, float *values) {
    for (int64_t first = 0; first < ROUND(size); first += LANES)
        for (int64_t at = 0; at < n; at += LANES) {
            VF a[LANES], t[LANES], none = {0};
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                a[i] = first + i < size ? NAME(cached)(kind, cache, offset[first + i], at, n) : none;
#pragma GCC unroll 4
            for (int width = LANES; width > 1; width /= 2) {
#pragma GCC unroll 8
                for (int i = 0; i < LANES / 2; i++)
                    t[2 * i] = ZIP_LOW(a[i], a[i + LANES / 2]), t[2 * i + 1] = ZIP_HIGH(a[i], a[i + LANES / 2]);
#pragma GCC unroll 16
                for (int i = 0; i < LANES; i++) a[i] = t[i];
            }
            float *panel = keys + first / 32 * 32 * n + first % 32;
            for (int64_t i = 0; i < LANES && at + i < n; i++) NAME(store)(panel + (at + i) * 32, a[i]);
        }
    for (int64_t i = 0; i < size; i++)
        for (int64_t at = 0; at < ROUND(n); at += LANES)
            NAME(store)(values + (at / 32 * size + i) * 32 + at % 32,
                        NAME(cached)(kind, cache, offset[i] + to_values, at, n));
}

/* Attention of `count` rows of one sequence, the first at `position`, for the heads that share one kv head. Softmax is
   taken online over chunks of keys (Milakov and Gimelshein, arXiv 1805.02867), and chunks begin at multiples of CHUNK,
   so that a row's result does not depend on the rows beside it: what they see and it does not counts as zero. */
static TARGET void NAME(attend)(Pass *p, int64_t layer, int64_t sequence, int64_t row, int64_t count, int64_t position,
                                int64_t kv_head, float *scratch) {
    const Model *m = p->model;
    const Batch *b = p->batch;
    int64_t n = m->head_dim, wide = ROUND(n), group = m->heads / m->kv_heads, queries = count * group;
    int64_t q_stride = wide + 16, s_stride = CHUNK + 16; /* 16 more, so that rows do not compete for one cache set */
    float *q = scratch, *keys = q + queries * q_stride, *values = keys + CHUNK * n, *score = values + CHUNK * wide;
    float *mixed = score + queries * s_stride, *largest = mixed + queries * wide, *total = largest + queries;
    Rows q_rows = {(uint8_t *)q, q_stride * 4, 0, 0}, s_rows = {(uint8_t *)score, s_stride * 4, 0, 0};
    Matrix k_panel = {(uint8_t *)keys, 0, n, 0, F32}, v_panel = {(uint8_t *)values, 0, 0, 0, F32};
    for (int64_t i = 0; i < queries; i++) {
        memcpy(q + i * q_stride, p->qkv + (row + i / group) * p->qkv_stride + (kv_head * group + i % group) * n, n * 4);
        largest[i] = -INFINITY, total[i] = 0;
    }
    memset(mixed, 0, queries * wide * 4);

    const int32_t *table = b->tables + sequence * b->table_stride;
    int64_t token = m->kv_heads * n, part = b->blocks * b->block_size * token; /* numbers of a token, of all blocks */
    int64_t end = position + count, bytes = b->cache_kind == F32 ? 4 : 2;
    int64_t offset[2 * CHUNK], found = 0, block = 0, within = 0; /* where this chunk's keys and the next one's lie */
    for (int64_t start = 0; start < end; start += CHUNK) {
        int64_t size = end - start < CHUNK ? end - start : CHUNK;
        if (start) memcpy(offset, offset + CHUNK, CHUNK * sizeof *offset);
        for (; found < start + 2 * CHUNK && found < end; found++) {
            int64_t at = (2 * layer * part) + (table[block] * b->block_size + within) * token + kv_head * n;
            offset[found - start] = at;
            if (++within == b->block_size) within = 0, block++;
            for (int64_t i = 0; i < n * bytes; i += 64) { /* to L2: the processor cannot foresee them */
                __builtin_prefetch((const char *)b->cache + at * bytes + i, 0, 2);
                __builtin_prefetch((const char *)b->cache + (at + part) * bytes + i, 0, 2);
            }
        }
        if (b->cache_kind == F32) NAME(unpack)(F32, b->cache, offset, part, size, n, keys, values);
        else NAME(unpack)(BF16, b->cache, offset, part, size, n, keys, values);
        for (int64_t i = 0; i < size; i += 32)
            NAME(product)(&k_panel, i / 32, &q_rows, queries, score + i, s_stride, 0);
        for (int64_t i = 0; i < queries; i++) {
            float *s = score + i * s_stride;
            int64_t seen = position + i / group + 1 - start;
            for (int64_t j = seen < 0 ? 0 : seen; j < ROUND(size); j++) s[j] = -INFINITY;
            VF most = NAME(load)(s), sum = {0};
            for (int64_t j = LANES; j < ROUND(size); j += LANES)
                most = NAME(select)(NAME(load)(s + j) > most, NAME(load)(s + j), most);
            float next = NAME(maximum)(most);
            if (next < largest[i]) next = largest[i];
            for (int64_t j = 0; j < ROUND(size); j += LANES) { /* exponential() ends at e^-87: what is unseen must be 0 */
                VF x = NAME(load)(s + j);
                x = (VF)((VI)NAME(exponential)(x - next) & (x > -INFINITY));
                NAME(store)(s + j, x);
                sum += x;
            }
            float fade = largest[i] == next ? 1 : expf(largest[i] - next);
            largest[i] = next, total[i] = total[i] * fade + NAME(sum)(sum);
            if (fade != 1)
                for (int64_t j = 0; j < wide; j++) mixed[i * wide + j] *= fade;
        }
        v_panel.steps = size;
        for (int64_t panel = 0; panel < wide / 32; panel++)
            NAME(product)(&v_panel, panel, &s_rows, queries, mixed + panel * 32, wide, 1);
    }
    for (int64_t i = 0; i < queries; i++) {
        float *to = p->mixed + (row + i / group) * p->dim + (kv_head * group + i % group) * n;
        for (int64_t j = 0; j < n; j++) to[j] = mixed[i * wide + j] / total[i];
    }
}

/* Rotate a row's queries (scaled too) and keys (arXiv 2104.09864), and put keys and values into the cache. */
static TARGET void NAME(rotate)(Pass *p, int64_t layer, int64_t row, float *turn) {
    const Model *m = p->model;
    const Batch *b = p->batch;
    int64_t n = m->head_dim, position = p->position[row];
    float *cosine = turn, *sine = turn + n / 2, *q = p->qkv + row * p->qkv_stride, scale = 1 / sqrtf(n);
    for (int64_t i = 0; i < n / 2; i++) {
        float angle = (float)position * m->inv_freq[i];
        cosine[i] = cosf(angle), sine[i] = sinf(angle);
    }
    for (int64_t head = 0; head < m->heads + m->kv_heads; head++) {
        float *first = q + head * n, *second = first + n / 2, size = head < m->heads ? scale : 1;
        for (int64_t i = 0; i < n / 2; i++) {
            float a = first[i], c = second[i];
            first[i] = (a * cosine[i] - c * sine[i]) * size;
            second[i] = (c * cosine[i] + a * sine[i]) * size;
        }
    }
    const int32_t *table = b->tables + p->sequence[row] * b->table_stride;
    int64_t slot = table[position / b->block_size] * b->block_size + position % b->block_size;
    int64_t token = m->kv_heads * n, part = b->blocks * b->block_size * token;
    for (int64_t which = 0; which < 2; which++) {
        const float *from = q + (m->heads + which * m->kv_heads) * n;
        int64_t to = (2 * layer + which) * part + slot * token;
        if (b->cache_kind == F32) memcpy((float *)b->cache + to, from, token * 4);
        else
            for (int64_t i = 0; i < token; i++) ((uint16_t *)b->cache)[to + i] = to_bf16(from[i]);
    }
}

/* RMSNorm (Zhang and Sennrich, arXiv 1910.07467) of a row */
static TARGET void NAME(normalise)(Pass *p, const float *x, const float *weight, float *to) {
    VF squares = {0};
    for (int64_t i = 0; i < p->dim; i += LANES) squares += NAME(load)(x + i) * NAME(load)(x + i);
    float inverse = 1 / sqrtf(NAME(sum)(squares) / p->model->dim + p->model->norm_eps);
    for (int64_t i = 0; i < p->dim; i += LANES) NAME(store)(to + i, NAME(load)(x + i) * inverse * NAME(load)(weight + i));
}

/* gate and up, whose panels alternate -> silu(gate) * up (arXiv 2002.05202) */
static TARGET void NAME(gated)(Pass *p, const Matrix *matrix, int64_t panel, float *scratch) {
    const int64_t rows = p->batch->rows, stride = 64 + 16;
    NAME(product)(matrix, 2 * panel, &p->x, rows, scratch, stride, 0);
    NAME(product)(matrix, 2 * panel + 1, &p->x, rows, scratch + 32, stride, 0);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < 32; i += LANES) {
            VF gate = NAME(load)(scratch + row * stride + i), up = NAME(load)(scratch + row * stride + 32 + i);
            NAME(store)(p->hidden + row * p->ffn + panel * 32 + i, gate * up / (NAME(exponential)(-gate) + 1.0f));
        }
}

static TARGET void NAME(forward)(Pass *p, int thread) {
    const Model *m = p->model;
    const Batch *b = p->batch;
    float *scratch = p->scratch + thread * p->scratch_size;
    int64_t rows = b->rows, tile = p->tile;
    EACH(p, row, rows) {
        float *to = p->residual + row * p->dim;
        for (int64_t i = 0, at = (int64_t)b->tokens[row] * m->dim; i < m->dim; i++, at++)
            to[i] = m->embed_kind == F32 ? ((const float *)m->embed)[at] : from_bf16(((const uint16_t *)m->embed)[at]);
    }
    meet(p);
    for (int64_t layer = 0; layer < m->layers; layer++) {
        const Matrix *qkv = m->matrices + 4 * layer, *out = qkv + 1, *gate_up = qkv + 2, *down = qkv + 3;
        const float *norm = m->norms + 2 * layer * p->dim;
        EACH(p, row, rows) {
            NAME(normalise)(p, p->residual + row * p->dim, norm, scratch);
            NAME(prepare)(qkv->kind, scratch, p->dim, &p->x, row);
        }
        meet(p);
        EACH(p, panel, qkv->panels)
            NAME(product)(qkv, panel, &p->x, rows, p->qkv + panel * 32, p->qkv_stride, 0);
        meet(p);
        EACH(p, row, rows) NAME(rotate)(p, layer, row, scratch);
        meet(p);
        EACH(p, item, p->tiles * m->kv_heads) {
            int64_t row = p->tile_row[item / m->kv_heads], sequence = p->sequence[row];
            int64_t left = b->starts[sequence + 1] - row;
            NAME(attend)(p, layer, sequence, row, left < tile ? left : tile, p->position[row], item % m->kv_heads, scratch);
        }
        meet(p);
        EACH(p, row, rows) NAME(prepare)(out->kind, p->mixed + row * p->dim, p->dim, &p->x, row);
        meet(p);
        EACH(p, panel, out->panels) NAME(product)(out, panel, &p->x, rows, p->residual + panel * 32, p->dim, 1);
        meet(p);
        EACH(p, row, rows) {
            NAME(normalise)(p, p->residual + row * p->dim, norm + p->dim, scratch);
            NAME(prepare)(gate_up->kind, scratch, p->dim, &p->x, row);
        }
        meet(p);
        EACH(p, panel, gate_up->panels / 2) NAME(gated)(p, gate_up, panel, scratch);
        meet(p);
        EACH(p, row, rows) NAME(prepare)(down->kind, p->hidden + row * p->ffn, p->ffn, &p->x, row);
        meet(p);
        EACH(p, panel, down->panels) NAME(product)(down, panel, &p->x, rows, p->residual + panel * 32, p->dim, 1);
        meet(p);
    }
    const float *norm = m->norms + 2 * m->layers * p->dim;
    EACH(p, row, rows) NAME(normalise)(p, p->residual + row * p->dim, norm, b->hidden + row * p->dim);
}

/* Final hidden states -> logits */
static TARGET void NAME(output)(Pass *p, int thread) {
    const Matrix *head = p->model->matrices + 4 * p->model->layers;
    const Batch *b = p->batch;
    (void)thread;
    EACH(p, row, b->rows) NAME(prepare)(head->kind, b->hidden + row * p->dim, p->dim, &p->x, row);
    meet(p);
    EACH(p, panel, head->panels)
        NAME(product)(head, panel, &p->x, b->rows, b->logits + panel * 32, head->panels * 32, 0);
}

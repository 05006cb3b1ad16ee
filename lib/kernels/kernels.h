/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.h - the kernel table: every signature once, with its contract.
 *
 * ref/ fills each entry in plain C, x86/ and arm/ overwrite entries in ascending
 * order of instruction sets; bxn_kernels_init is the only chooser. A kernel never
 * allocates, locks, logs or fails, and never reads or writes outside the buffers
 * it is given. Results are independent of how work is cut into calls: an output
 * element is computed by one fixed order of operations that depends on the shapes
 * of the model alone, never on the number of tokens in the call (so that any split
 * of a prompt, any batch and any number of threads give the same bits).
 *
 * Activation rows: a row of K values has a stride of at least round_up(K, 128)
 * floats; the elements from K up to there are zero, readable, and left alone by
 * kernels that write K values. "[T, K] ld" below means such rows, ld floats apart.
 */
#ifndef BXN_KERNELS_H
#define BXN_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/dtype.h"

#define BXN_UNIT_ROWS 16  /* output rows of a packed unit */
#define BXN_UNIT_COLS 128 /* inputs of a packed unit */
#define BXN_SUB_BLOCK 32  /* inputs summed by one chain before a scale is applied */
#define BXN_PAGE 64       /* tokens in a page of the attention window */
#define BXN_QUERIES 64    /* queries that one attention call takes at most */
#define BXN_PART 512      /* keys whose softmax is taken together */

/* A dense matrix [rows, cols], row-major, in place in a file: data may be unaligned. */
typedef struct bxn_dense {
    const void *data;
    bxn_dtype dtype; /* F32, F16, BF16 */
    uint32_t rows, cols;
} bxn_dense;

/* A quantised matrix [rows, cols] in the kernels' layout: units of 16 rows x 128
 * columns, [row_groups][k_units][unit_bytes]; the first is 64-byte aligned. A unit is
 *   scales [blocks][16]   f16 or f32; block b covers columns b * 128 / blocks ...
 *   biases [blocks][16]   same type, as the file has them (uncentred); only when has_bias
 *   codes  4 bits: [16 vectors][16 lanes] uint32: lane r of vector v holds 8 codes of
 *                  row r, columns v * 8 .. v * 8 + 7, lowest nibble first
 *          8 bits: [32 vectors][16 lanes] uint32: lane r of vector v holds 4 signed
 *                  bytes of row r, columns v * 4 .. v * 4 + 3, lowest byte first
 * Rows and columns beyond the matrix have scale, bias and code 0 (zero bytes).
 *
 * Value: 4 bits: w = scale * table[code] + bias'; 8 bits: w = scale * code + bias'
 * with bias' = bias + center * scale (affine: codes are stored less their centre,
 * table[c] = c - center; 8-bit codes are already stored centred) or 0 (NF4).
 *
 * Order of a dot product, for each output row and token, all in f32:
 *   y = 0; for each sub-block j of 32 columns in ascending order:
 *     p = 0; for k ascending in j: p += value[k] * x[k];
 *     y += scale * p;  if has_bias: y += bias' * xsum[j].
 * SIMD tiers use fused multiply-add at each "+=" (and for bias'); plain C need not. A tier may
 * leave the centre of affine codes to the bias (value = code, bias' = bias). */
typedef struct bxn_packed {
    const uint8_t *data;
    uint32_t rows, cols;
    uint32_t row_groups; /* ceil(rows / 16) */
    uint32_t k_units;    /* ceil(cols / 128) */
    uint32_t unit_bytes;
    uint8_t code_bits;   /* 4 or 8: of the container */
    uint8_t source_bits; /* 2, 3, 4, 5, 6, 8: of the codes in it; for reports */
    uint8_t blocks;      /* scale blocks per unit: 1, 2 or 4 (groups of 128, 64, 32) */
    uint8_t has_bias;    /* affine: 1, NF4: 0 */
    uint8_t scale_f32;   /* 1: f32 scales and biases, 0: f16 */
    float center;        /* affine: 2^(source_bits - 1) */
    float table[16];     /* 4-bit codes */
} bxn_packed;

/* A 4-bit matrix whose codes are looked up in a table (not a line). */
static inline int bxn_packed_has_table(const bxn_packed *w)
{
    return w->code_bits == 4 && !w->has_bias;
}

static inline uint32_t bxn_unit_scale_bytes(const bxn_packed *w)
{
    return (uint32_t)w->blocks * BXN_UNIT_ROWS * (w->scale_f32 ? 4u : 2u) * (w->has_bias ? 2u : 1u);
}

/* ---- activations as integers -------------------------------------------------------
 *
 * The accuracy tiers `near` and `fast` multiply integer activations by integer codes. A row
 * is cut into blocks of BXN_XQ_BLOCK columns; of a block with m = max |x|:
 *   m < 1e-30:                 q = 0, xs = 0
 *   any x NaN or infinite:     q = 0, xs = NaN (so that the result is NaN)
 *   else, all in f32:          q = rint(x * (L / m)) within -L .. L, xs = (m / L) / T
 * with rint to nearest even and
 *   kind                 L      T     for weights
 *   BXN_XQ_NEAR4         32512  1     4-bit affine codes
 *   BXN_XQ_NEAR8         32512  1     8-bit container
 *   BXN_XQ_NEAR_TABLE    4095   8191  4-bit codes with a table (NF4)
 *   BXN_XQ_FAST4, _FAST8 127    1
 *   BXN_XQ_FAST_TABLE    127    127
 * These integers are the same in every tier of instructions; in which order they are stored is
 * the tier's own affair: for each 128 columns it has 256 bytes in the near kinds and 128 in the
 * fast ones, and 16 more, room for an int32 sum of each 32 columns. 32512 = 127 * 256, so that q = 256 * hi + lo with
 * hi and lo in -128 .. 127.
 *
 * Code values: 4-bit affine: code - centre; 8 bits: the signed code; table: rint(table[code] * T).
 *
 * Order of a dot product for each output row and token, over integer blocks of
 * w = min(columns of a scale block, 64) columns ascending:
 *   S = sum of value * q over the block, exact in 32 bits
 *   y = fma((float)S, scale * xs, y)
 *   if has_bias: y = fma(bias', X, y), X = xsum[j] of the block (w = 32) or xsum[2j] + xsum[2j + 1]
 * (y = 0 first; bias' = fma(centre, scale, bias)). Integer sums have no order, so that all
 * instruction sets and any number of tokens in a call give the same bits; plain C differs
 * only by not fusing. */
#define BXN_XQ_BLOCK 64
typedef enum bxn_xq_kind {
    BXN_XQ_NONE = 0,
    BXN_XQ_NEAR4,
    BXN_XQ_NEAR8,
    BXN_XQ_NEAR_TABLE,
    BXN_XQ_FAST4,
    BXN_XQ_FAST8,
    BXN_XQ_FAST_TABLE
} bxn_xq_kind;

/* Bytes of a row of `columns` (a multiple of 128) integers, a multiple of 64. */
static inline size_t bxn_xq_bytes(bxn_xq_kind kind, size_t columns)
{
    size_t bytes = kind == BXN_XQ_NONE ? 0 : (kind >= BXN_XQ_FAST4 ? columns : 2 * columns);
    return kind == BXN_XQ_NONE ? 0 : (bytes + columns / 8 + 63) & ~(size_t)63;
}

/* ---- activations as bf16 tiles ------------------------------------------------------
 *
 * For the products of AMX, which only prefill uses: rows of bf16 in blocks of 16 rows. A block is
 * [columns / 32] tiles of 1 KiB, a tile 16 rows of 32 values in the order 0 4 1 5 2 6 3 7 within
 * every 8 columns, which is how codes of two columns share a lane of packed weights. Columns are
 * those of the weights rounded up to 128, the last of them zero. A block is there as a whole; rows
 * of it that belong to no token may hold anything.
 *
 * Both operands are rounded to bf16, to nearest even, denormals to zero: w = bf16(scale * value),
 * or bf16(scale * value + bias') in the sense of bxn_packed. Order per output: y = 0; for each 32
 * inputs ascending: even = odd = 0; for each 8 inputs ascending and i < 4: even += w[i] * x[i],
 * odd += w[i + 4] * x[i + 4]; y += even + odd. Sums are f32 with denormals as zero; a processor
 * may round within a tile otherwise, so that plain C is met within a tolerance, not bit by bit. A
 * token's results depend on its own row alone, never on how many tokens or rows a call has. */
static inline size_t bxn_tile_bytes(size_t columns) /* of a block of 16 rows; columns: of 128 */
{
    return columns * 32;
}

typedef struct bxn_mm_args {
    const float *x; /* [*, K] ldx; not read by near and fast products */
    size_t ldx;
    const int32_t *rows; /* [count] which row of x belongs to output row m; NULL: m */
    uint32_t count;      /* tokens */
    float *y;            /* [count, N] ldy; exactly the columns asked for are written */
    size_t ldy;
    const float *xsum; /* [*, ldsum] sums of x over 32 columns, 4 to a unit, indexed as x;
                        * packed with bias only */
    size_t ldsum;
    const void *xq;      /* near and fast: integer rows, indexed as x; 64-byte aligned */
    size_t ldxq;         /* bytes; a multiple of 64 */
    const float *xscale; /* [*, K / BXN_XQ_BLOCK] ldxscale */
    size_t ldxscale;
    const struct bxn_low_rank *low; /* what adapters add: of the linear op; kernels do not look */
    uint32_t low_count;
} bxn_mm_args;

/* c[i][j] += sum over t < rows of p[t][i] * q[t][j]: gradients of a matrix. Exactly the elements
 * asked for are read and written. Order per element: for each block of 128 rows t ascending:
 * s = 0; for t ascending in it: s += p[t][i] * q[t][j] (fused in SIMD); c += s. */
typedef struct bxn_outer_args {
    const float *p;
    size_t ldp;
    const float *q;
    size_t ldq;
    uint32_t rows;
    float *c;
    size_t ldc;
} bxn_outer_args;

/* What quant_x must write for a product with w in the near or the fast tier. */
static inline bxn_xq_kind bxn_xq_kind_of(const bxn_packed *w, int fast)
{
    bxn_xq_kind near = w->code_bits == 8           ? BXN_XQ_NEAR8
                       : bxn_packed_has_table(w) ? BXN_XQ_NEAR_TABLE
                                                   : BXN_XQ_NEAR4;
    return fast ? (bxn_xq_kind)(near + (BXN_XQ_FAST4 - BXN_XQ_NEAR4)) : near;
}

/* Selective scan of Mamba-1 with the gate, for channels [begin, end), multiples of 16
 * (Gu & Dao 2023; bit-axon spec 3.1):
 *   dt = clip(softplus(bcd[t][2N] * dt_weight + dt_bias), 1e-4, 100)
 *   h[n] = exp2(dt * a2[n]) * h[n] + dt * x * B[t][n]
 *   y = (sum_n C[t][n] * h[n] + d * x) * z * sigmoid(z)
 * Channels are padded to 16: parameters of padded channels are 0. */
typedef struct bxn_scan_args {
    uint32_t tokens;
    uint32_t begin, end;
    uint32_t states;         /* N >= 1 */
    const float *x;          /* [T, E] ldx: after convolution and SiLU */
    size_t ldx;
    const float *z;          /* [T, E] ldz: readable up to E rounded up to 16 */
    size_t ldz;
    const float *bcd;        /* [T, 2N+1] ldbcd: B, C, dt */
    size_t ldbcd;
    const float *dt_weight;  /* [E16] */
    const float *dt_bias;    /* [E16] */
    const float *a2;         /* [E16/16][N][16]: -exp(A_log) * log2(e) */
    const float *d;          /* [E16] */
    const float *h_in;       /* [E16/16][N][16] */
    float *h_out;            /* same layout; h_in or disjoint from it */
    float *y;                /* [T, E16] ldy; x itself with ldy = ldx, or disjoint from x and z */
    size_t ldy;
} bxn_scan_args;

/* Causal depthwise convolution and SiLU, for channels [begin, end), multiples of 16:
 *   c[t][e] = bias[e] + sum_j weight[j][e] * p[t + j][e], p = tail rows then x rows
 *   y[t][e] = c * sigmoid(c). The sum runs over j ascending. */
typedef struct bxn_conv_args {
    uint32_t tokens;
    uint32_t begin, end;
    uint32_t taps;       /* K >= 1 */
    const float *x;      /* [T, E] ldx, readable up to E16 */
    size_t ldx;
    const float *tail;   /* [K-1, E16] E16 apart: the K-1 inputs before x */
    const float *weight; /* [K, E16] */
    const float *bias;   /* [E16] */
    size_t e16;          /* channels rounded up to 16 */
    float *y;            /* [T, E16] ldy */
    size_t ldy;
} bxn_conv_args;

/* ---- gradients of scan and convolution ------------------------------------------------- */

#define BXN_SCAN_CHUNK 16 /* tokens whose states are recomputed together; the states stay in the first cache */

/* Floats of scratch that a call of scan_backward needs. */
static inline size_t bxn_scan_backward_floats(uint32_t states)
{
    return 16 * ((size_t)states * (3 * BXN_SCAN_CHUNK + 1) + 9 * BXN_SCAN_CHUNK);
}

/* Gradients of the scan through at most BXN_SCAN_CHUNK tokens of one sequence, for channels [begin, end);
 * begin is a multiple of 16, end too or the number of channels. A sequence is walked by calls from its last
 * tokens to its first. States are recomputed from h_in as the scan computes them. With g the gradient of y,
 * v the argument of softplus, s = sigmoid(z), w the sum before the gate, for t descending:
 *   p = g * z * s;  dz = g * w * s * (1 + z * (1 - s));  dd += p * x
 *   q[n] = C[n] * p + carry[n];  dC[n] = p * h_t[n];  dB[n] = q[n] * dt * x;  du = sum_n q[n] * B[n]
 *   carry[n] = exp2(dt * a2[n]) * q[n];  r[n] = carry[n] * h_(t-1)[n] * a2[n]
 *   dx = d * p + dt * du;  da_log[n] += r[n] * dt * ln 2
 *   dv = (x * du + ln 2 * sum_n r[n]) * sigmoid(v), 0 where dt was clipped
 *   ddt = dv * dt_weight;  ddt_weight += dv * bcd[t][2N];  ddt_bias += dv
 * Sums over n by groups ascending; those of dB, dC, ddt over the channels: lane sums over groups of lanes
 * ascending, then the tree of block_sums. They are written; the gradients of vectors are added to, one
 * chain over t each, so that how a sequence is cut into calls shows in no bit. Channels beyond
 * `end` are neither read nor written but in parameters and states, whose padding is and stays zero. */
typedef struct bxn_scan_backward_args {
    uint32_t tokens; /* 1 .. BXN_SCAN_CHUNK */
    uint32_t begin, end;
    uint32_t states;
    const float *x; /* x to d: as for the scan */
    size_t ldx;
    const float *z;
    size_t ldz;
    const float *bcd;
    size_t ldbcd;
    const float *dt_weight, *dt_bias, *a2, *d;
    const float *h_in; /* [E16/16][N][16] the state before the first token */
    float *carry;      /* the same: gradient of the state behind the last token, becomes that of h_in */
    const float *dy;   /* [T, E] lddy: gradient of y */
    size_t lddy;
    float *dx; /* [T, E] lddx; dy itself, or disjoint */
    size_t lddx;
    float *dz; /* [T, E] lddz; z itself, or disjoint */
    size_t lddz;
    float *dbcd; /* [T, 2N+1] lddbcd: sums over these channels */
    size_t lddbcd;
    /* Gradients of the vectors, each nullable; da_log, of A_log, in the layout of a2. */
    float *ddt_weight, *ddt_bias, *dd, *da_log;
    float *scratch; /* bxn_scan_backward_floats, 64-byte aligned */
} bxn_scan_backward_args;

/* Gradients of the convolution with SiLU of a whole sequence, whose tail is zero; channels as above.
 * c and p as for the convolution, s = sigmoid(c), for t descending:
 *   dc = dy * s * (1 + c * (1 - s)), written over dy;  dbias += dc;  dweight[j] += dc * p[t + j]
 *   dx[t] = sum_j weight[j] * dc[t + K - 1 - j], j ascending, within the sequence */
typedef struct bxn_conv_backward_args {
    uint32_t tokens;
    uint32_t begin, end;
    uint32_t taps;
    const float *x; /* [T, E] ldx */
    size_t ldx;
    const float *weight; /* [K, E16] */
    const float *bias;   /* [E16] */
    size_t e16;
    float *dy; /* [T, E] lddy; spent */
    size_t lddy;
    float *dx; /* [T, E] lddx; x itself, or disjoint */
    size_t lddx;
    float *dweight, *dbias; /* as weight and bias; nullable together */
} bxn_conv_backward_args;

/* ---- cached keys and values -----------------------------------------------------------
 *
 * A page holds BXN_PAGE tokens. In it, each head of each layer has K at k_offset and V at
 * v_offset (64-byte aligned). With D = head_dim, S = D rounded up to 16:
 *            K                                     V
 *   F32, F16 [4][D][16], lanes are keys            [64][S]
 *   I8       f32 scale[64], int8 [4][D][16]        f32 scale[64], int8 [64][S]
 *   Q4       f32 scale[64],                        f32 scale[64],
 *            uint32 [4][ceil(D / 8)][16]: 8        uint32 [8][S]: 8 keys of one feature,
 *            features of one key, lowest first     lowest first
 * I8 value: scale * code. Q4 value: scale * level, level = (code & 8 ? -1 : 1) *
 * BXN_KV_LEVELS[code & 7]. Padding (features from D on) is zero bytes. */
typedef enum bxn_kv_type {
    BXN_KV_F16 = 1, /* as BITAXON_KV_* */
    BXN_KV_F32,
    BXN_KV_I8,
    BXN_KV_Q4
} bxn_kv_type;

/* Positive half of the Lloyd-Max codebook of N(0, 1) with 16 levels, and the borders between. */
#define BXN_KV_LEVELS                                                                              \
    {                                                                                              \
        0.128395f, 0.388048f, 0.656759f, 0.942340f, 1.256231f, 1.618046f, 2.069017f, 2.732590f     \
    }
#define BXN_KV_BORDERS                                                                             \
    {                                                                                              \
        0.2582215f, 0.5224035f, 0.7995495f, 1.0992855f, 1.4371385f, 1.8435315f, 2.4008035f         \
    }

/* Floats of a partial result: S sums, the maximum, the sum of exponentials, to 16. */
static inline size_t bxn_partial_floats(uint32_t head_dim)
{
    return ((size_t)head_dim + 15) / 16 * 16 + 16;
}

/* Floats of scratch that a call of attention needs. */
static inline size_t bxn_attention_scratch(uint32_t head_dim)
{
    return (size_t)BXN_QUERIES * (BXN_PART + 16) +
           ((size_t)head_dim + 15) / 16 * 16 * (BXN_PAGE + BXN_QUERIES) +
           2 * (size_t)BXN_QUERIES * bxn_partial_floats(head_dim);
}

#define BXN_ALL_PARTS UINT64_MAX

/* Attention of one head over a window of cached keys and values.
 * Query row i stands at position + i and sees keys max(0, p - window + 1) .. p.
 * Keys are cut into parts of BXN_PART by absolute position. For each part:
 *   s = (dot * (scale * log2(e))) * key scale (I8, Q4 only), dot one chain over features
 *   m = max s;  e = exp2(s - m);  l = sum e: 16 lane sums by absolute position, tree of mm_f32
 *   o = sum over keys ascending of (e * value scale) * value, one chain
 * Parts are merged in order (L = 0 at first; a part with no key seen is left out):
 *   M' = max(M, m), a = exp2(M - M'), b = exp2(m - M'), L = L * a + l * b, O = O * a + o * b
 * (the products with b rounded, the rest fused); the first part is taken as it is. Result: O / L.
 * So neither paging, nor the split of a prompt, nor the other queries of a call show. Keys that a
 * query does not see may hold anything. */
typedef struct bxn_attention_args {
    const float *q; /* [count, head_dim] ldq, not scaled */
    size_t ldq;
    float scale;    /* 1 / sqrt(head_dim) */
    uint32_t count; /* 1 .. BXN_QUERIES */
    uint32_t head_dim;
    uint64_t position;
    uint64_t window;
    const void *const *pages; /* pages[p / BXN_PAGE - first_page]; present for all keys seen */
    uint64_t first_page;
    size_t k_offset, v_offset; /* bytes */
    float *scratch;            /* bxn_attention_scratch floats, 64-byte aligned */
    uint64_t part;             /* BXN_ALL_PARTS: the result, to out; else this part, to partial */
    float *out;                /* [count, head_dim] ldout */
    size_t ldout;
    float *partial; /* [count, bxn_partial_floats]: o, then m and l at S and S + 1; l = 0: empty */
} bxn_attention_args;

/* ---- attention in training ---------------------------------------------------------------
 *
 * Attention of one head over one document whose queries, keys and values are all there as rows
 * [rows, head_dim] ld: query i sees keys max(0, i - window + 1) .. i. Tiles of BXN_QUERIES queries
 * and as many keys are cut from the document's first row. Order, SIMD tiers fusing each "+=":
 *   s = one chain over features of k * (q * (scale * log2(e)))
 *   forward, by tiles of keys ascending, from m = -1e30, l = 0, o = 0:
 *     m' = max(m, s), a = exp2(m - m'), e = exp2(s - m'), t = sum of e by keys ascending
 *     l = l * a + t; o = o * a where a is not 1; o += e * v by keys ascending; m = m'
 *   out = o / l, top = m, inverse = 1 / l
 *   backward: p = exp2(s - top) * inverse; dp = one chain over features of v * dout;
 *     ds = exp2(s - top) * (dp - delta) * (inverse * scale)
 *     dq += ds * k by keys ascending; dv += p * dout and dk += ds * q by queries ascending
 * Keys that a query does not see add nothing, or zero when they are in a tile of those that it
 * sees (so that NaN there may reach it). Plain C takes the maximum over all keys at once.
 * Results of any range of queries or keys are the same bits. */
typedef struct bxn_attention_train_args {
    const float *q, *k, *v; /* [rows, head_dim] ld: of the document */
    size_t ld;
    uint32_t rows, head_dim;
    uint64_t window;     /* >= 1 */
    float scale;         /* 1 / sqrt(head_dim) */
    uint32_t begin, end; /* rows of this call: begin a multiple of BXN_QUERIES, end too or `rows` */
    float *scratch;      /* bxn_attention_train_scratch floats, 64-byte aligned */
    float *top, *inverse; /* [rows] by query: the forward writes those of its rows */
    /* forward */
    float *out; /* [rows, head_dim] ldout */
    size_t ldout;
    /* backward: dq of queries [begin, end), when dk is NULL; dk and dv of keys [begin, end), when dq is
     * NULL; or all three of all rows, which costs less than both. dq may be q. */
    const float *dout; /* [rows, head_dim] lddout */
    size_t lddout;
    const float *delta; /* [rows] sum over features of dout * out */
    float *dq, *dk, *dv;
    size_t lddq, lddk, lddv;
} bxn_attention_train_args;

/* Floats of scratch that a call of attention_train or attention_backward needs. */
static inline size_t bxn_attention_train_scratch(uint32_t head_dim)
{
    return 6 * (size_t)BXN_QUERIES * (((size_t)head_dim + 15) / 16 * 16) +
           2 * (size_t)BXN_QUERIES * BXN_QUERIES + 4 * (size_t)BXN_QUERIES;
}

/* What AdamW (Loshchilov & Hutter 2019; spec 9.8) is told for an update, the same for all its parameters. */
typedef struct bxn_adamw {
    float scale;          /* of gradients */
    float b1, c1, b2, c2; /* beta and 1 - beta */
    float step;           /* rate / (1 - beta1^t) */
    float root;           /* 1 / sqrt(1 - beta2^t) */
    float epsilon;
} bxn_adamw;

typedef struct bxn_kernels {
    /* Rows [16 * group_begin, min(16 * group_end, rows)) of the product. */
    void (*mm_packed4)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                       const bxn_mm_args *args);
    void (*mm_packed8)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                       const bxn_mm_args *args);
    /* The same from integer activations, in the order stated at bxn_xq_kind; xq was written by
     * quant_x of the same table with the kind that bxn_xq_kind_of names. */
    void (*mm_near4)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                     const bxn_mm_args *args);
    void (*mm_near8)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                     const bxn_mm_args *args);
    void (*mm_fast4)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                     const bxn_mm_args *args);
    void (*mm_fast8)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                     const bxn_mm_args *args);
    /* columns: a multiple of 128; x readable that far. xq [bxn_xq_bytes], xscale [columns / 64]. */
    void (*quant_x)(bxn_xq_kind kind, const float *x, size_t columns, void *xq, float *xscale);
    /* Rows [row_begin, row_end). Order per output: y = 0; for each block of 128 inputs in
     * ascending order: p = 0; for k ascending in it: p += w[k] * x[k] (fused in SIMD); y += p. */
    void (*mm_f32)(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                   const bxn_mm_args *args);
    void (*mm_f16)(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                   const bxn_mm_args *args);
    void (*mm_bf16)(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                    const bxn_mm_args *args);
    /* Products with the transpose, for gradients: columns [128 * unit_begin, min(128 * unit_end,
     * cols)) of y[m][k] = sum over n of x[m][n] * w[n][k], added to y when `add`. Here x is
     * [*, rows] ldx and y [count, cols] ldy; sums and integers are not used. Order per output:
     * y = 0 or what is there; for each block of 128 rows n ascending: p = 0; for n ascending in
     * it: p += w[n][k] * x[n]; y += p. A packed weight is scale * value, or scale * value + bias'
     * in the sense above, rounded to f32 before it is multiplied. SIMD tiers fuse each
     * multiply-add. */
    void (*mm_t_packed4)(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,
                         const bxn_mm_args *args, bool add);
    void (*mm_t_packed8)(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,
                         const bxn_mm_args *args, bool add);
    void (*mm_t_f32)(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                     const bxn_mm_args *args, bool add);
    void (*mm_t_f16)(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                     const bxn_mm_args *args, bool add);
    void (*mm_t_bf16)(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                      const bxn_mm_args *args, bool add);
    /* Rows [i_begin, i_end) and columns [j_begin, j_end) of c. */
    void (*outer_add)(const bxn_outer_args *args, uint32_t i_begin, uint32_t i_end,
                      uint32_t j_begin, uint32_t j_end);
    /* out[j] = sum of x[32 j .. 32 j + 31] for j < count (x readable that far). Order:
     * 16 lanes (x[i] + x[i + 16]), then a fixed tree: lanes i and i + 8, then + 4, + 2, + 1. */
    void (*block_sums)(const float *x, size_t count, float *out);
    /* y = x / sqrt(mean(x^2) + eps) * w over n values; the sum in 16 lanes (x[i], x[i + 16], ...
     * ascending, fused in SIMD), then the tree above. w is f32.
     * x and y may be the same. */
    void (*rmsnorm)(const float *x, const float *w, size_t n, float eps, float *y);
    void (*add)(float *y, const float *x, size_t n);                  /* y += x */
    void (*scale_add)(float *y, const float *x, float s, size_t n); /* y += s * x, fused in SIMD */
    void (*silu_mul)(float *a, const float *b, size_t n);             /* a = a * sigmoid(a) * b */
    /* Backward of h = a * sigmoid(a) * b, where g is the gradient of h and s a factor of it: g becomes the
     * gradient of a, s g b (d + a d (1 - d)) with d = sigmoid(a), and db is s g a d. Returns the sum of g * h
     * without s: 16 lanes (elements i, i + 16, ... ascending, fused in SIMD), then the tree above. */
    float (*silu_mul_backward)(const float *a, const float *b, float *g, float s, float *db, size_t n);
    /* x = e^(x - max) for x <= max; returns their sum, in lanes and tree as above. NaN goes through. */
    float (*exp_sum)(float *x, float max, size_t n);
    void (*conv_silu)(const bxn_conv_args *args);
    void (*scan)(const bxn_scan_args *args);
    void (*scan_backward)(const bxn_scan_backward_args *args);
    void (*conv_backward)(const bxn_conv_backward_args *args);
    void (*attention_f16)(const bxn_attention_args *args);
    void (*attention_f32)(const bxn_attention_args *args);
    void (*attention_i8)(const bxn_attention_args *args);
    void (*attention_q4)(const bxn_attention_args *args);
    /* Merge the parts of one query, in order. partials [parts, bxn_partial_floats]. */
    void (*attention_merge)(const float *partials, uint32_t parts, uint32_t head_dim, float *out);
    void (*attention_train)(const bxn_attention_train_args *args);
    void (*attention_backward)(const bxn_attention_train_args *args);
    /* Training: the same bits in all tiers (train_rows_body.h).
     * AdamW over n parameters: with g = scale * grad, m = b1 m + c1 g, v = b2 v + c2 g^2,
     * value = keep value - step m / (sqrt(v) root + epsilon), each operation rounded; grad becomes 0. */
    void (*adamw)(const bxn_adamw *a, float keep, float *value, float *grad, float *m, float *v, size_t n);
    /* Sum of squares in double: 16 lanes, added to the sum of what remains behind the last whole 16. */
    double (*square_sum)(const float *x, size_t n);
    /* The largest of n values, -infinity when there are none; NaN is passed over. */
    float (*row_max)(const float *x, size_t n);
    void (*scale)(float *x, float s, size_t n); /* x *= s */
    /* One row of the gradient of y = x r w, r = 1 / sqrt(mean(x^2) + eps): dx += r (w dy) - x r^3 / n *
     * sum(w dy x), the sums in double, 16 lanes and the tree above. Returns r. Arrays are disjoint. */
    float (*rmsnorm_backward)(const float *x, const float *w, const float *dy, size_t n, float eps, float *dx);
    /* Its weights: dw += sum over rows t ascending of dy[t] x[t] r[t], in double. */
    void (*rmsnorm_weight)(const float *x, size_t ldx, const float *dy, size_t lddy, const float *r, uint32_t rows,
                           size_t n, float *dw);
    /* A row as codes; *scale = (m = max |x|) / 127, code = rint(x * (127 / m)) to nearest even. All 0
     * when m < 1e-30. A row with NaN or an infinity has scale NaN and codes 0. */
    void (*quant_i8)(const float *x, uint32_t n, int8_t *codes, float *scale);
    /* r = sqrt(sum of squares, in the order of mm_f32); *scale = r / sqrt(n); the code is that of the
     * level nearest to x * (sqrt(n) / r), one code 0 .. 15 in a byte. All 0 when r^2 < 1e-30; scale
     * NaN and codes 0 when r^2 is not finite. */
    void (*quant_q4)(const float *x, uint32_t n, uint8_t *codes, float *scale);
    /* y[t] = R x[t] for symmetric R [n, S], S = n rounded up to 16, padded with zeros: one chain
     * over k ascending of R[k] * x[t][k]. y [count, S], 64-byte aligned, disjoint from x. */
    void (*kv_rotate)(const float *r, uint32_t n, const float *x, size_t ldx, uint32_t count,
                      float *y);
    /* n floats to f16, round to nearest even, saturated at +-65504, NaN kept. */
    void (*to_f16)(const float *x, size_t n, uint16_t *y);
    /* NULL but with AMX. Products of bf16 tiles: xq are blocks of 16 tokens, ldxq bytes apart
     * (bxn_tile_bytes), 64-byte aligned; rows must be NULL; x, sums and scales are not used. */
    void (*mm_tile4)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                     const bxn_mm_args *args);
    void (*mm_tile8)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                     const bxn_mm_args *args);
    /* x as row `row` (0 .. 15) of a block; columns: a multiple of 128, x readable that far. */
    void (*quant_bf16)(const float *x, size_t columns, void *tiles, uint32_t row);
    /* Attention with both products of bf16 tiles, for keys of any type. Order as above, but
     *   s = (dot of bf16(q * (scale * log2(e))) and bf16(key)) * key scale, 32 features at a time as mm_tile
     *   o = sum of bf16(e * value scale) * bf16(value), 32 keys at a time by absolute position
     * A query that sees a value that is not finite, as bf16, is NaN. */
    void (*attention_tile)(const bxn_attention_args *args, bxn_kv_type type);
    uint64_t features; /* BITAXON_CPU_* in use */
} bxn_kernels;

/* What cpuid, xgetbv and the operating system offer: BITAXON_CPU_* bits. */
uint64_t bxn_cpu_detect(void);

/* Fill every entry for the given features (unknown bits are ignored). */
void bxn_kernels_init(bxn_kernels *kernels, uint64_t features);

/* Names of the tiers for a feature set, "c", "c avx2", "c avx2 avx512"; static. */
const char *bxn_kernels_name(uint64_t features);

#endif

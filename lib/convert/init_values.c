/* SPDX-License-Identifier: Apache-2.0 */
/* init_values.c - the first values of weights (spec 2.2): uniform, normal by Box and
 * Muller's method, logarithms. Called while writing a new checkpoint. A value depends on
 * seed, tensor name and element number alone; logarithm, sine and cosine are computed here
 * from the four operations, so that bytes do not depend on the C library. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "convert/bxn_convert.h"

#include <math.h>
#include <string.h>

uint64_t bxn_init_key(const char *name)
{
    return XXH3_64bits(name, strlen(name));
}

/* ln(x) for normal x > 0: x = m * 2^e with m near 1, ln m = 2 artanh((m - 1) / (m + 1)). */
static double natural_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int e = (int)(bits >> 52) - 1023;
    bits = (bits & 0xFFFFFFFFFFFFFu) | 0x3FF0000000000000u;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m /= 2;
        e++;
    }
    double s = (m - 1) / (m + 1), square = s * s, sum = 0;
    for (int k = 25; k >= 1; k -= 2)
        sum = sum * square + 1.0 / k;
    return 2 * s * sum + e * 0.6931471805599453;
}

/* Sine and cosine of u turns, 0 <= u < 1: quadrants, then Taylor's series up to pi / 2. */
static void turn(double u, double *sine, double *cosine)
{
    int quadrant = (int)(u * 4);
    double x = (u * 4 - quadrant) * 1.5707963267948966, square = x * x, s = 0, c = 0;
    for (int k = 20; k >= 2; k -= 2) {
        s = (1 - s) * square / (double)(k * (k + 1));
        c = (1 - c) * square / (double)((k - 1) * k);
    }
    s = (1 - s) * x;
    c = 1 - c;
    *sine = quadrant == 0 ? s : quadrant == 1 ? c : quadrant == 2 ? -s : -c;
    *cosine = quadrant == 0 ? c : quadrant == 1 ? -s : quadrant == 2 ? -c : s;
}

/* Four values of counter `block`. */
static void draw(const bxn_plan_item *item, uint64_t seed, uint64_t key, uint64_t block,
                 float out[4])
{
    uint32_t word[4];
    bxn_philox(seed, key, block, word);
    if (item->init == BXN_INIT_UNIFORM) {
        for (int i = 0; i < 4; i++)
            out[i] = (float)(item->bound * (((double)word[i] + 0.5) * 0x1p-31 - 1));
        return;
    }
    for (int i = 0; i < 4; i += 2) {
        double sine, cosine, r = sqrt(-2 * natural_log(((double)word[i] + 0.5) * 0x1p-32));
        turn((double)word[i + 1] * 0x1p-32, &sine, &cosine);
        out[i] = (float)(item->bound * r * cosine);
        out[i + 1] = (float)(item->bound * r * sine);
    }
}

void bxn_init_values(const bxn_plan_item *item, uint64_t seed, uint64_t key, uint64_t first,
                     size_t count, float *out)
{
    if (item->init == BXN_INIT_ZERO || item->init == BXN_INIT_ONE) {
        for (size_t i = 0; i < count; i++)
            out[i] = item->init == BXN_INIT_ONE ? 1.0f : 0.0f;
        return;
    }
    if (item->init == BXN_INIT_LOG_RANGE) {
        uint64_t period = item->shape[item->rank - 1];
        for (size_t i = 0; i < count; i++)
            out[i] = (float)natural_log((double)((first + i) % period + 1));
        return;
    }
    for (size_t i = 0; i < count;) {
        float four[4];
        uint64_t at = first + i;
        draw(item, seed, key, at / 4, four);
        for (uint64_t lane = at % 4; lane < 4 && i < count; lane++)
            out[i++] = four[lane];
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* orpo.c - odds-ratio preference optimisation (Hong et al. 2024; spec 9.7): from log-probabilities of
 * labels to the loss of pairs of answers and its gradient. Called by the pass through the whole model
 * between the two passes over the head. All in double. */
#include "train/bxn_train.h"

#include <math.h>

/* Both forms lose digits where the other keeps them; they meet at e^x = 1/2 (Maechler 2012). */
double bxn_log1mexp(double x)
{
    return x > -0.6931471805599453 ? log(-expm1(x)) : log1p(-exp(x));
}

typedef struct answer {
    uint64_t count; /* labels */
    double mean;    /* of their log p */
    double clamped;
    bool held; /* the clamp changed it: no gradient */
} answer;

static answer read_answer(const bxn_micro_step *step, const bxn_document *document, const float *logp)
{
    answer a = { 0 };
    double sum = 0;
    for (uint32_t t = document->first; t < document->first + document->count; t++)
        if (step->labels[t] >= 0) {
            sum += (double)logp[t];
            a.count++;
        }
    a.mean = a.count == 0 ? 0 : sum / (double)a.count;
    a.clamped = a.mean < -1000.0 ? -1000.0 : a.mean > -1e-6 ? -1e-6 : a.mean; /* NaN stays */
    a.held = a.clamped != a.mean;
    return a;
}

static void fill(const bxn_micro_step *step, const bxn_document *document, double by_mean, uint64_t count,
                 float *coefficient)
{
    for (uint32_t t = document->first; t < document->first + document->count; t++)
        if (step->labels[t] >= 0)
            coefficient[t] = (float)(by_mean / (double)count);
}

void bxn_orpo(const bxn_objective_params *params, const bxn_micro_step *step, const float *logp, float *coefficient,
              bxn_losses *losses)
{
    double beta = (double)params->beta, lambda = (double)params->lambda;
    for (uint32_t t = 0; t < step->rows; t++)
        coefficient[t] = 0;
    for (uint32_t i = 0; i + 1 < step->document_count; i += 2) {
        const bxn_document *documents = step->documents + i;
        answer chosen = read_answer(step, &documents[0], logp), rejected = read_answer(step, &documents[1], logp);
        if (chosen.count == 0 || rejected.count == 0) {
            losses->skipped_pairs++;
            continue;
        }
        double log_odds = chosen.clamped - rejected.clamped -
                          (bxn_log1mexp(chosen.clamped) - bxn_log1mexp(rejected.clamped));
        /* -log sigmoid(z) and its derivative -sigmoid(-z), without overflow on either side */
        double z = beta * log_odds, e = exp(-fabs(z));
        double odds = log1p(e) + (z < 0 ? -z : 0);
        double slope = -lambda * beta * (z < 0 ? 1 : e) / (1 + e);
        /* d log_odds / da = 1 / (1 - e^a) of the chosen answer, minus that of the rejected one */
        double by_chosen = -1 + (chosen.held ? 0 : slope / -expm1(chosen.clamped));
        double by_rejected = rejected.held ? 0 : -slope / -expm1(rejected.clamped);
        fill(step, &documents[0], by_chosen, chosen.count, coefficient);
        fill(step, &documents[1], by_rejected, rejected.count, coefficient);
        losses->loss += -chosen.mean + lambda * odds;
        losses->nll += -chosen.mean;
        losses->odds += odds;
        losses->chosen += chosen.mean;
        losses->rejected += rejected.mean;
        losses->preferred += chosen.mean > rejected.mean;
        losses->tokens += chosen.count + rejected.count;
        losses->pairs++;
    }
}

#include "kernels/cross_entropy_row.h"
#include "ops/cross_entropy.h"

/* ---- forward ---- */

/* The loss of row r, of whose sum this is the logarithm, and what is kept of it. */
static double
finish(const struct ck_cross_entropy_fwd *a, size_t r, int64_t t, ck_measure row, double log_sum)
{
    const double s = a->label_smoothing;
    double loss = 0;

    if (t != a->ignore_index) {
        const double lse = row.peak + log_sum;
        const elem *logits = ck_row(&a->logits, r);
        loss = lse - (1 - s) * score(v16_load(logits + (CK_FAULT(loss_targets_shifted) ? (t + 1) % (int64_t)a->V : t), 1), (float)a->softcap) + a->z_loss * lse * lse;
        if (s > 0)
            loss -= s / (double)a->V * row.other;
        if (CK_FAULT(loss_log_eps))
            loss = -log(exp(-loss) + 1e-10);
    }
    if (a->losses != NULL)
        a->losses[r] = (float)loss;
    if (a->peak != NULL)
        a->peak[r] = row.peak;
    if (a->sum != NULL)
        a->sum[r] = (float)row.sum;
    return loss;
}

/* Rows r to r+n-1, short ones: the sum of their losses. */
static double
short_rows(const struct ck_cross_entropy_fwd *a, size_t r, size_t n)
{
    const elem *logits[CK_ROW_GANG];
    ck_measure rows[CK_ROW_GANG];
    double total = 0, log[CK_ROW_GANG];

    for (size_t j = 0; j < n; j++)
        logits[j] = ck_row(&a->logits, r + j);
    measure_short_rows(rows, logits, n, a->V, (float)a->softcap, a->label_smoothing > 0);
    for (size_t j = 0; j < n; j++)
        log[j] = ck_log(rows[j].sum);
    for (size_t j = 0; j < n; j++) {
        const int64_t t = ck_id(&a->target, r + j);
        total += finish(a, r + j, t, t == a->ignore_index ? ck_nothing : rows[j], log[j]);
    }
    return total;
}

/* Of whole rows, task.work is the sum of their losses; of rows that are cut, a ck_pieces. */
CK_KERNEL(cross_entropy_fwd)
{
    const ck_pieces *cut = a->V > CK_PIECE ? task.work : NULL;
    double total = 0;
    size_t i = task.begin;

    if (a->V <= CK_ROW_SHORT)
        for (; i < task.end; i += i + CK_ROW_GANG < task.end ? CK_ROW_GANG : task.end - i)
            total += short_rows(a, i, task.end - i < CK_ROW_GANG ? task.end - i : CK_ROW_GANG);
    for (; i < task.end; i++) {
        const ck_span s = cut != NULL ? ck_piece_at(cut, i, a->V) : (ck_span){i, 0, a->V, NULL, NULL};
        const int64_t t = ck_id(&a->target, s.row);
        if (cut != NULL && cut->write) {
            if (s.begin == 0)
                s.whole->other = finish(a, s.row, t, t == a->ignore_index ? ck_nothing : *s.whole, ck_log(s.whole->sum));
            continue;
        }
        const elem *logits = (const elem *)ck_row(&a->logits, s.row) + s.begin;
        ck_measure m = ck_nothing;
        if (t != a->ignore_index)
            measure(&m, logits, s.n, (float)a->softcap, a->label_smoothing > 0);
        if (cut != NULL)
            *s.part = m;
        else
            total += finish(a, s.row, t, m, ck_log(m.sum));
    }
    if (cut == NULL)
        *(double *)task.work = total;
}

/* ---- backward ---- */

/* Items are rows, or pieces of rows that are cut. */
CK_KERNEL(cross_entropy_bwd)
{
    const size_t pieces = a->V > CK_PIECE ? (a->V - 1) / CK_PIECE + 1 : 1;
    const ck_pieces cut = {.pieces = pieces};
    const bool stream = streams(2, &a->dlogits, &a->logits, a->R, a->V);

    for (size_t i = task.begin; i < task.end; i++) {
        const ck_span s = pieces > 1 ? ck_piece_at(&cut, i, a->V) : (ck_span){i, 0, a->V, NULL, NULL};
        const int64_t t = ck_id(&a->target, s.row);
        elem *dlogits = (elem *)ck_row(&a->dlogits, s.row) + s.begin;
        const double g = a->dy.data != NULL ? *(const float *)ck_row(&a->dy, s.row) : a->dloss * *(const double *)task.work;
        const ck_loss_row row = {g, a->label_smoothing, a->z_loss, a->V, (float)a->softcap, a->peak[s.row], a->sum[s.row]};
        if (t != a->ignore_index)
            spread_row(dlogits, (const elem *)ck_row(&a->logits, s.row) + s.begin, s.n, (size_t)t - s.begin, &row, stream);
        else
            for (size_t v = 0; v < s.n; v += 16)
                v16_store(dlogits + v, v16_zero(), s.n - v);
    }
    if (stream)
        ck_stream_end();
}

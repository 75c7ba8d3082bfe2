#ifndef CK_REFERENCE_FUNCTIONS_H
#define CK_REFERENCE_FUNCTIONS_H
/* The functions of ops/activation.h in double, for the op itself and for products that end with one. */
#include "reference/reference.h"

static inline double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static inline double square(double x) { return x * x; }
static inline double normal_below(double x) { return 0.5 * erfc(-x * sqrt(0.5)); }                /* Phi */
static inline double normal_at(double x) { return exp(-0.5 * x * x) * (M_SQRT1_2 / sqrt(M_PI)); } /* phi */

/* x s(w), where w has the slope dw */
static inline double gated(double x, double w) { return x * sigmoid(w); }
static inline double gated_slope(double x, double w, double dw) { return sigmoid(w) * (1 + x * dw * sigmoid(-w)); }

static inline double bent(double x) { return sqrt(8 / M_PI) * (x + 0.044715 * x * x * x); }
static inline double bent_slope(double x) { return sqrt(8 / M_PI) * (1 + 3 * 0.044715 * x * x); }
#endif

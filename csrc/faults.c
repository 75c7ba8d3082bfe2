/* What the build with CK_FAULTS has besides: the list, which one is planted, which were asked for. */
#include "faults.h"

#define CK_PLANT(name, what) {#name, what},
const ck_fault_row ck_fault_rows[CK_FAULT_COUNT] = {{"", "none"},
#include "faults.def"
};

int ck_fault_planted, ck_fault_asked[CK_FAULT_COUNT];

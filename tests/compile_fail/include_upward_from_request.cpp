// SPDX-License-Identifier: MIT
// floor: request. A floor does not see the floors above it.
#ifdef WRONG
#include "sched/plan.h"
#endif
#include "request/states.h"

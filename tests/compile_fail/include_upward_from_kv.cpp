// SPDX-License-Identifier: MIT
// floor: kv. A floor does not see the floors above it.
#ifdef WRONG
#include "request/ledger.h"
#endif
#include "kv/pool.h"

// SPDX-License-Identifier: MIT
// floor: base. A floor does not see the floors above it.
#ifdef WRONG
#include "kv/pool.h"
#endif
#include "base/ids.h"

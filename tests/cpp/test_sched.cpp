// SPDX-License-Identifier: MIT
#include "test.h"
#include "world.h"

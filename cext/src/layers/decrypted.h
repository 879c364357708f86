/* A read-only layer that decrypts the layer below (base/xts.h). */
#ifndef SITERIG_DECRYPTED_H
#define SITERIG_DECRYPTED_H

#include "base/xts.h"
#include "layers/layer.h"

/* The layer owns `lower`, and shares `xts`. NULL: errno is the reason; then nothing is owned. */
struct sr_layer *sr_layer_decrypted(struct sr_layer *lower, struct sr_xts *xts);

#endif

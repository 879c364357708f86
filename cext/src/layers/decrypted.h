/* A read-only layer that decrypts the layer below (base/xts.h). */
#ifndef SITERIG_DECRYPTED_H
#define SITERIG_DECRYPTED_H

#include "base/xts.h"
#include "layers/layer.h"

/* The layer owns `lower`, and shares `xts`. NULL: errno is the reason; then nothing is owned. */
struct sr_layer *sr_layer_decrypted(struct sr_layer *lower, struct sr_xts *xts);

/* Read any bytes of an encrypted layer of any kind, and decrypt them; as sr_layer_read otherwise. */
int sr_layer_read_decrypted(struct sr_layer *lower, struct sr_xts *xts, void *into, uint64_t bytes, uint64_t offset);

#endif

/* The bytes of an encrypted disk, as requests read them (base/xts.h): layer, log and store of the snapshot have encrypted
 * bytes in lines of 16; only memory has others.
 */
#ifndef SITERIG_LINES_H
#define SITERIG_LINES_H

#include "disk/disk_internal.h"

/* The range of the whole lines around a range. */
struct sr_lines {
	uint64_t offset, bytes;
	uint64_t before; /* bytes of the first line that come before the range */
};
struct sr_lines sr_lines_of(uint64_t offset, uint64_t bytes);

/* Read from the layer of a disk with or without encryption; as sr_layer_read. */
int sr_plain_read(struct sr_disk *disk, void *buf, uint64_t bytes, uint64_t offset);

/* Decrypt bytes that were read from `offset` on: any range of the disk. `lines` has the whole lines of the range; the
 * bytes are copied to `buf`. */
int sr_decrypt_lines(struct sr_disk *disk, void *lines, void *buf, uint64_t bytes, uint64_t offset);

#endif

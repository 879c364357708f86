/* Changes of a disk's bytes as the layer and the log have them; those of an encrypted disk are encrypted, and whole lines.
 *
 * All functions need disk->lock; the range is within the disk.
 */
#ifndef SITERIG_STORED_H
#define SITERIG_STORED_H

#include "disk/disk_internal.h"

/* Log, then write; as sr_disk_write otherwise. */
int64_t sr_write_stored(struct sr_disk *disk, const void *buf, uint64_t bytes, uint64_t offset);

/* The same for sr_disk_zero. */
int sr_zero_stored(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes);

#endif

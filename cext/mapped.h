/* Numbers in a mapped file that may be cut, or on a medium that may fail: an error, where a load would end the
 * process. */
#ifndef SITERIG_MAPPED_H
#define SITERIG_MAPPED_H

#include <stdint.h>

/* Once, before the first load. */
void sr_mapped_prepare(void);

/* 0, or -EIO if they cannot be read.  The calling thread does not hold SIGBUS back. */
int sr_mapped_load(const uint32_t *at, int count, uint32_t *values);

#endif

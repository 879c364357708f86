/* Several disks held still: no request of a guest is running on any of them. */
#ifndef SITERIG_STILL_H
#define SITERIG_STILL_H

#include <stddef.h>

struct sr_disk;

/* Only one thread at a time may hold disks still. */
void sr_disks_alone(void);
void sr_disks_alone_no_more(void);

/* Wait until no request runs on any of the disks, which are different ones; none begins until sr_disks_go_on. Requests
 * that wait for a fault rule do not count. */
void sr_disks_still(struct sr_disk **disks, size_t count);
void sr_disks_go_on(struct sr_disk **disks, size_t count);

#endif

#include "disk/still.h"

#include "disk/disk_internal.h"

static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;

void sr_disks_alone(void)
{
	pthread_mutex_lock(&alone);
}

void sr_disks_alone_no_more(void)
{
	pthread_mutex_unlock(&alone);
}

void sr_disks_still(struct sr_disk **disks, size_t count)
{
	for (size_t i = 0; i < count; i++)
		pthread_rwlock_wrlock(&disks[i]->inflight_lock);
}

void sr_disks_go_on(struct sr_disk **disks, size_t count)
{
	for (size_t i = 0; i < count; i++)
		pthread_rwlock_unlock(&disks[i]->inflight_lock);
}

/* Files of a disk that another program has changed, truncated or removed. */
#define _GNU_SOURCE
#include <errno.h>

#include "disk/disk_internal.h"
#include "disk/lock.h"

int64_t sr_note_changed(struct sr_disk *disk, int64_t result)
{
	if (result != -ESTALE)
		return result;
	__atomic_store_n(&disk->file_changed, 1, __ATOMIC_RELEASE);
	sr_log_abandon(disk, SR_IMAGE_CHANGED);
	disk->event_due = 1;
	return -EIO;
}

int64_t sr_noted(struct sr_disk *disk, int64_t result)
{
	if (result != -ESTALE)
		return result;
	pthread_mutex_lock(&disk->lock);
	result = sr_note_changed(disk, result);
	sr_unlock(disk);
	return result;
}

void sr_disk_note_changed(struct sr_disk *disk)
{
	(void)sr_noted(disk, -ESTALE);
}

int sr_disk_take_event(struct sr_disk *disk)
{
	return __atomic_exchange_n(&disk->event_raised, 0, __ATOMIC_ACQ_REL);
}

int sr_disk_file_changed(struct sr_disk *disk)
{
	return __atomic_load_n(&disk->file_changed, __ATOMIC_ACQUIRE);
}

void sr_disk_forget_file_changed(struct sr_disk *disk)
{
	__atomic_store_n(&disk->file_changed, 0, __ATOMIC_RELEASE);
}

void sr_disk_note_log_lost(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	sr_log_abandon(disk, SR_LOG_LOST);
	sr_unlock(disk);
}

int64_t sr_disk_excess_bytes(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock); /* no resize is in progress */
	int64_t excess = sr_layer_excess_bytes(disk->layer);
	sr_unlock(disk);
	return excess;
}

int sr_disk_lost_files(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	int lost = sr_layer_lost_maps(disk->layer) | (sr_log_check_dirty(disk) ? SR_LOST_DIRTY : 0);
	sr_unlock(disk);
	return lost;
}

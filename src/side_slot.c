/*
 * side_slot.c
 *	  The slots of side workers: given by relays, taken back by the launcher,
 *	  woken by everybody. See side_slot.h.
 *
 * A request for a side worker is never lost: it is counted in
 * control_generation under the (shared) lock, and a slot whose worker has left
 * is taken back under the (exclusive) lock only if nothing was counted since
 * the worker looked. Who comes too late for the slot tells the relay instead,
 * which declares the worker anew.
 */
#include "postgres.h"

#include "storage/lwlock.h"

#include "side_slot.h"

static SideSlot *
decider_of(const RelaySlot *relay)
{
	return &side_slots[relay - shared_state->slots];
}

static bool
is_for(SideSlot *slot, Oid dboid, WorkerKind kind, int32 subscription)
{
	return pg_atomic_read_u32(&slot->worker.dboid) == dboid &&
		slot->worker.kind == kind && slot->worker.subscription == subscription;
}

SideSlot *
side_slot_find(Oid dboid, WorkerKind kind, int32 subscription, int32 number)
{
	for (int i = 0; i < shared_state->nsides; i++)
	{
		SideSlot   *slot = &side_slots[i];

		if (is_for(slot, dboid, kind, subscription) && slot->worker.number == number)
			return slot;
	}
	return NULL;
}

/* Under the lock. NULL: all are taken. */
static SideSlot *
claim(RelaySlot *relay, const SideWanted *wanted)
{
	SideSlot   *slot = NULL;

	if (wanted->kind == WORKER_DECIDER)
		slot = decider_of(relay);
	for (int i = shared_state->nslots; i < shared_state->nsides && slot == NULL; i++)
		if (side_slots[i].worker.phase == SLOT_FREE)
			slot = &side_slots[i];
	if (slot == NULL)
		return NULL;

	shmem_reset_side(slot);
	slot->worker.subscription = wanted->subscription;
	slot->worker.number = wanted->number;
	slot->worker.phase = SLOT_WANTED;
	pg_write_barrier();
	pg_atomic_write_u32(&slot->worker.dboid,
						pg_atomic_read_u32(&relay->worker.dboid));
	return slot;
}

static bool
is_among(const SideSlot *slot, const SideWanted *wanted, int n)
{
	for (int i = 0; i < n; i++)
		if (wanted[i].kind == slot->worker.kind &&
			wanted[i].subscription == slot->worker.subscription &&
			wanted[i].number == slot->worker.number)
			return true;
	return false;
}

int
side_slots_declare(Oid dboid, const SideWanted *wanted, int n)
{
	RelaySlot  *relay = shmem_find_slot(dboid);
	int			refused = 0;

	if (relay == NULL)
		return n;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = shared_state->nslots; i < shared_state->nsides; i++)
	{
		SideSlot   *slot = &side_slots[i];

		if (pg_atomic_read_u32(&slot->worker.dboid) != dboid ||
			is_among(slot, wanted, n))
			continue;
		slot->wanted = false;
		shmem_request_stop_locked(&slot->worker);
	}
	for (int i = 0; i < n; i++)
	{
		SideSlot   *slot = side_slot_find(dboid, wanted[i].kind,
										  wanted[i].subscription, wanted[i].number);

		if (slot == NULL)
			slot = claim(relay, &wanted[i]);
		if (slot == NULL)
		{
			refused++;
			continue;
		}
		slot->wanted = true;
		if (slot->worker.phase == SLOT_IDLE)
			slot->worker.phase = SLOT_WANTED;
	}
	relay->side_refused = refused > 0;
	LWLockRelease(shared_state->lock);

	shmem_set_latch(pg_atomic_read_u32(&shared_state->launcher_procno));
	return refused;
}

/* Under the lock. */
static void
wake(SideSlot *slot)
{
	/* A full barrier: the worker sees the count, or we see it asleep. */
	pg_atomic_fetch_add_u32(&slot->worker.control_generation, 1);
	if (pg_atomic_read_u32(&slot->worker.sleeping) != 0)
		shmem_set_latch(pg_atomic_read_u32(&slot->worker.procno));
	if (slot->worker.phase == SLOT_IDLE)
		shmem_set_latch(pg_atomic_read_u32(&shared_state->launcher_procno));
}

static void
tell_relay(RelaySlot *relay)
{
	pg_atomic_fetch_add_u32(&relay->worker.control_generation, 1);
	shmem_set_latch(pg_atomic_read_u32(&relay->worker.procno));
}

void
side_slots_wake(Oid dboid, WorkerKind kind, int32 subscription)
{
	RelaySlot  *relay = shmem_find_slot(dboid);
	bool		found = false;

	if (relay == NULL)
		return;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	if (kind == WORKER_DECIDER)
	{
		if (is_for(decider_of(relay), dboid, kind, 0))
		{
			wake(decider_of(relay));
			found = true;
		}
	}
	else
	{
		for (int i = shared_state->nslots; i < shared_state->nsides; i++)
		{
			if (!is_for(&side_slots[i], dboid, kind, subscription))
				continue;
			wake(&side_slots[i]);
			found = true;
		}
	}
	LWLockRelease(shared_state->lock);

	if (!found)
		tell_relay(relay);
}

void
side_slots_wake_database(Oid dboid)
{
	LWLockAcquire(shared_state->lock, LW_SHARED);
	for (int i = 0; i < shared_state->nsides; i++)
		if (pg_atomic_read_u32(&side_slots[i].worker.dboid) == dboid)
			wake(&side_slots[i]);
	LWLockRelease(shared_state->lock);
}

void
side_slots_progressed(const RelaySlot *relay)
{
	SideSlot   *slot = decider_of(relay);

	/* The progress is visible before the flag is looked at. */
	pg_memory_barrier();
	if (pg_atomic_read_u32(&slot->progress_wanted) == 0)
		return;
	pg_atomic_write_u32(&slot->progress_wanted, 0);
	shmem_set_latch(pg_atomic_read_u32(&slot->worker.procno));
}

/* Under the lock. Whether the slot is free now. */
static bool
try_release(SideSlot *slot)
{
	if (slot->worker.phase == SLOT_STARTING || slot->worker.phase == SLOT_RUNNING)
		return false;
	if (slot->wanted)
	{
		if (slot->worker.phase != SLOT_IDLE)
			return false;
		if (pg_atomic_read_u32(&slot->worker.control_generation) != slot->idle_generation)
		{
			slot->worker.phase = SLOT_WANTED;
			return false;
		}
	}
	slot->worker.phase = SLOT_FREE;
	pg_atomic_write_u32(&slot->worker.dboid, InvalidOid);
	return true;
}

/* A slot is free: those who found none may want it. */
static void
offer_free_slot(void)
{
	for (int i = 0; i < shared_state->nslots; i++)
	{
		RelaySlot  *relay = &shared_state->slots[i];
		bool		refused;

		LWLockAcquire(shared_state->lock, LW_SHARED);
		refused = relay->side_refused;
		LWLockRelease(shared_state->lock);
		if (refused)
			tell_relay(relay);
	}
}

void
side_slot_try_release(SideSlot *slot)
{
	bool		released;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	released = try_release(slot);
	LWLockRelease(shared_state->lock);

	if (released && slot->worker.kind == WORKER_INBOX)
		offer_free_slot();
}

bool
side_slots_release_database(Oid dboid)
{
	bool		all = true;
	bool		released = false;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared_state->nsides; i++)
	{
		SideSlot   *slot = &side_slots[i];

		if (pg_atomic_read_u32(&slot->worker.dboid) != dboid)
			continue;
		slot->wanted = false;
		if (try_release(slot))
			released |= slot->worker.kind == WORKER_INBOX;
		else
		{
			if (pg_atomic_read_u32(&slot->worker.stop_requested) == 0)
				shmem_request_stop_locked(&slot->worker);
			all = false;
		}
	}
	LWLockRelease(shared_state->lock);

	if (released)
		offer_free_slot();
	return all;
}

/* The in-flight area of a split queue: a device that may be killed at any step, and its successors.
 *
 * The driver offers COUNT chains through a ring of SIZE; the device takes several, returns them in any order, one or
 * more per batch. KILLS times it is killed between two stores, wherever that hurts most, and a successor goes on with
 * what lies in memory. A killed process's stores are visible in order up to its death (x86), so memory is plain here.
 *
 *   nothing lost             the driver gets back every chain: no invalid end state
 *   nothing completed twice  what comes back was in flight: assertion in `driver`
 *   only true replays        a successor replays what was taken and not returned, all of it, in order of taking
 *   nothing replayed unsaid  what is taken as new was never handled before
 *
 * The steps, as in vqshm/ring/inflight.py and split_device.py:
 *
 *   take     counter, mark                      Inflight.take, from DeviceQueue._take
 *   return   element, next, last_batch_head     DeviceQueue._return, Inflight.give
 *   publish  used.idx                           DeviceQueue.publish_used
 *   settle   marks off, used_idx                Inflight.settle
 *   resume   last batch, marks, settle          Inflight.resume, DeviceQueue.resume
 *
 * Mutants, each of which must be caught: see test_spin.py.
 */
#ifndef COUNT
#define COUNT 4
#endif
#ifndef SIZE
#define SIZE 2
#endif
#ifndef KILLS
#define KILLS 2
#endif
#define LAPS (2 * SIZE)
#define NONE 255

/* The rings. */
byte avail_idx, used_idx;
byte avail_ring[SIZE], used_ring[SIZE];
/* The in-flight area. */
bit mark[SIZE];
byte counter[SIZE], next[SIZE];
byte last_batch_head, settled_idx;
/* What only the spectator knows. */
mtype = { FREE, OFFERED, TAKEN, RETURNED };
mtype state[SIZE] = FREE;
byte taken_as[SIZE];     /* the how manieth take it was, of all devices */
byte takes;
bit handled[SIZE];

#define GAP(a, b) ((a + LAPS - b) % LAPS)

/* One store of the device, before which it may be killed. */
#define STEP(store) if :: store :: atomic { kills > 0 -> kills-- ; goto dead } fi

proctype driver() {
  byte offered, back, seen, head;
  bit out[SIZE];

  do
  :: offered < COUNT && offered - back < SIZE ->
     atomic {
       head = 0;
       do
       :: head < SIZE && out[head] -> head++
       :: else -> break
       od;
       out[head] = 1;
       state[head] = OFFERED;
       handled[head] = 0
     }
     avail_ring[offered % SIZE] = head;
     offered++;
     avail_idx = offered % LAPS
  :: back < COUNT && used_idx != back % LAPS ->
     head = used_ring[back % SIZE];
     assert(head < SIZE && out[head]);
     assert(state[head] == RETURNED && handled[head]);
     out[head] = 0;
     state[head] = FREE;
     back++
  :: back == COUNT -> break
  od
}

proctype device() {
  byte kills = KILLS;
  byte next_avail, next_used, number, i, head, before, inflight, last;
  byte batch[SIZE], length;
  bit held[SIZE];        /* taken, and not returned */
  bit again[SIZE];       /* replayed */

start:
  /* -- resume: nothing is known but what lies in memory ------------------------------------------------------------ */
  atomic {
    next_used = used_idx;
    last = last_batch_head;
    length = 0;
    head = last;
    do
#ifdef NO_SETTLE
    :: break
#endif
    :: length < GAP(used_idx, settled_idx) ->
       assert(head < SIZE);
       batch[length] = head;
       length++;
       head = next[head]
    :: else -> break
    od;
    /* what is marked and not in the last batch was taken */
    i = 0;
    do
    :: i < SIZE -> held[i] = mark[i]; i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < length -> held[batch[i]] = 0; i++
    :: else -> break
    od;
    inflight = 0;
    number = 0;
    i = 0;
    do
    :: i < SIZE ->
       assert(held[i] == (state[i] == TAKEN));                  /* all of them, and nothing else */
       again[i] = held[i];
       if
       :: held[i] -> inflight++;
          if
          :: number <= counter[i] -> number = counter[i] + 1
          :: else
          fi
       :: else
       fi;
       i++
    :: else -> break
    od
#ifndef NO_SKIP
    ; next_avail = (used_idx + inflight) % LAPS
#else
    ; next_avail = used_idx
#endif
  }
  i = 0;
  do
  :: i < length -> STEP(mark[batch[i]] = 0); i++
  :: else -> break
  od;
  STEP(settled_idx = next_used);
  length = 0;

  /* -- replays, in the order of taking ----------------------------------------------------------------------------- */
  do
  :: atomic {
       inflight > 0 ->
       head = NONE;
       i = 0;
       do
       :: i < SIZE ->
          if
          :: again[i] && (head == NONE || counter[i] < counter[head]) -> head = i
          :: else
          fi;
          i++
       :: else -> break
       od;
       i = 0;
       do
       :: i < SIZE -> assert(!again[i] || taken_as[i] >= taken_as[head]); i++
       :: else -> break
       od;
       again[head] = 0;
       inflight--
     }
     STEP(handled[head] = 1)
  :: inflight == 0 -> break
  od;

  /* -- the life of a device ---------------------------------------------------------------------------------------- */
  do
  :: next_avail != avail_idx ->                                 /* take */
     head = avail_ring[next_avail % SIZE];
     atomic { assert(!held[head] && state[head] == OFFERED && !handled[head]) }
#ifdef MARK_LATE
     STEP(handled[head] = 1);
#endif
#ifndef COUNTER_LATE
     STEP(counter[head] = number);
#endif
     STEP(d_step { mark[head] = 1; state[head] = TAKEN; taken_as[head] = takes; takes++ });
#ifdef COUNTER_LATE
     STEP(counter[head] = number);
#endif
#ifndef NO_COUNTER
     number++;
#endif
     held[head] = 1;
     next_avail = (next_avail + 1) % LAPS;
     STEP(handled[head] = 1)
  :: atomic {
       head = 0;
       do                                                       /* any of those it holds */
       :: head < SIZE - 1 -> head++
       :: break
       od
     }
     if
     :: held[head] ->
        STEP(d_step { used_ring[next_used % SIZE] = head });
#ifdef CLEAR_FIRST
        STEP(mark[head] = 0);
#endif
#ifndef LINK_LATE
#ifndef NO_NEXT
        STEP(next[head] = last);
#endif
        STEP(last_batch_head = head);
        last = head;
#endif
        batch[length] = head;
        length++;
        held[head] = 0;
        next_used = (next_used + 1) % LAPS
     :: else
     fi
  :: length > 0 ->                                              /* publish, settle */
#ifdef SETTLE_FIRST
     STEP(settled_idx = next_used);
#endif
     i = 0;
     STEP(d_step {
       used_idx = next_used;
       do
       :: i < length -> state[batch[i]] = RETURNED; i++
       :: else -> break
       od
     });
#ifdef LINK_LATE
     i = 0;
     do
     :: i < length ->
        STEP(next[batch[i]] = last);
        STEP(last_batch_head = batch[i]);
        last = batch[i];
        i++
     :: else -> break
     od;
#endif
#ifdef IDX_EARLY
     STEP(settled_idx = next_used);
#endif
     i = 0;
     do
     :: i < length -> STEP(mark[batch[i]] = 0); i++
     :: else -> break
     od;
     STEP(settled_idx = next_used);
     length = 0
  :: next_used == COUNT % LAPS && used_idx == COUNT % LAPS && takes >= COUNT && length == 0 -> goto done
  od;

dead:
  atomic {
    next_avail = 0; next_used = 0; number = 0; i = 0; head = 0; inflight = 0; last = 0; length = 0;
    do
    :: i < SIZE -> held[i] = 0; again[i] = 0; batch[i] = 0; i++
    :: else -> break
    od;
    i = 0
  }
  goto start;
done:
  skip
}

init {
  atomic {
    run driver();
    run device()
  }
}

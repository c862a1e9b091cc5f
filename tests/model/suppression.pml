/* Notification suppression in both directions, on processors with store buffers [2.7.7, 2.7.10].
 *
 * Two sides exchange COUNT messages through a ring of SIZE; each sleeps whenever it finds nothing to do, and is woken
 * only if it asked. Property: no invalid end state. A side that sleeps for ever is one, so is a message that is lost.
 *
 * Memory is x86-TSO: a side's stores go into its own buffer, first in first out, and become visible one by one, whenever
 * `memory` gets round to it. A load looks into the own buffer first, the youngest store wins. A fence waits until the
 * buffer is empty. A doorbell is seen at once, even before stores made earlier: worse than any kernel.
 *
 * Positions are counted modulo LAPS (65536 in a ring), so that they wrap. The steps, and where the code has them:
 *
 *   driver  fill, element, idx       split_driver: add, _offer, publish
 *           fence, event, kick       split_driver: needs_kick, publish_and_ask; suppress: need_event
 *           arm, fence, look         split_driver: enable_notification
 *   device  look, element            split_device: _look, _take
 *           element, idx             split_device: _return, publish_used
 *           fence, event, call       split_device: needs_notification
 *           arm, fence, look         split_device: enable_notification
 *   both    never sleep unarmed      notify/wait: Block.wait
 *
 * Options: FLAGS (no EVENT_IDX: a flag says whether to wake), SPURIOUS (wake-ups for nothing).
 * Mutants, each of which must be caught: see test_spin.py.
 */
#ifndef COUNT
#define COUNT 5
#endif
#ifndef SIZE
#define SIZE 2
#endif
#define LAPS (2 * SIZE)  /* as tight as 65536 is for the largest ring */
#define DEPTH 8          /* of a store buffer */

#define DRIVER 0
#define DEVICE 1

/* Words of memory. The wish of the device lies in `used`, that of the driver in `avail`. */
#define AVAIL 0
#define USED 1
#define DEVICE_WISH 2
#define DRIVER_WISH 3
#define AVAIL_RING 4
#define USED_RING (4 + SIZE)
#define WORDS (4 + 2 * SIZE)

byte memory_[WORDS];
typedef Buffer { byte length; byte where[DEPTH]; byte what[DEPTH] };
Buffer buffers[2];
bit kick, call;

inline store(side, word, value) {
  d_step {
    assert(buffers[side].length < DEPTH);
    buffers[side].where[buffers[side].length] = word;
    buffers[side].what[buffers[side].length] = value;
    buffers[side].length++
  }
}

inline load(side, word, result) {
  d_step {
    result = memory_[word];
    i = 0;
    do
    :: i < buffers[side].length ->
       if
       :: buffers[side].where[i] == word -> result = buffers[side].what[i]
       :: else
       fi;
       i++
    :: else -> break
    od;
    i = 0
  }
}

#define fence(side) (buffers[side].length == 0)

proctype memory(byte side) {
  byte i;
end:
  do
  :: d_step {
       buffers[side].length > 0 ->
       memory_[buffers[side].where[0]] = buffers[side].what[0];
       i = 1;
       do
       :: i < buffers[side].length ->
          buffers[side].where[i - 1] = buffers[side].where[i];
          buffers[side].what[i - 1] = buffers[side].what[i];
          i++
       :: else -> break
       od;
       buffers[side].length--;
       buffers[side].where[buffers[side].length] = 0;
       buffers[side].what[buffers[side].length] = 0;
       i = 0
     }
  od
}

/* Whether moving from `old` to `new` passed `event`; with FLAGS the event is 1 for "do not wake me". */
#define GAP(a, b) ((a + LAPS - b) % LAPS)
#ifdef FLAGS
#define PASSED(event, new, old) (event == 0)
#else
#ifdef EQUALITY
#define PASSED(event, new, old) (new == (event + 1) % LAPS)
#else
#ifdef NO_WRAP
#define PASSED(event, new, old) (old <= event && event < new)
#else
#define PASSED(event, new, old) (GAP(new, ((event + 1) % LAPS)) < GAP(new, old))
#endif
#endif
#endif

#ifdef FLAGS
#define ARM(side, wish, position) store(side, wish, 0)
#define DISARM(side, wish) store(side, wish, 1)
#else
#define ARM(side, wish, position) store(side, wish, position)
#define DISARM(side, wish) skip
#endif

#ifdef SPURIOUS
#define SLEEP(bell) if :: atomic { bell -> bell = 0 } :: true fi
#else
#define SLEEP(bell) atomic { bell -> bell = 0 }
#endif

proctype driver() {
  byte i, seen, element;
  byte sent, back;       /* all messages so far */
  byte old, pending;     /* what was last shown; added since then */

  DISARM(DRIVER, DRIVER_WISH);
  do
  :: sent < COUNT && sent - back < SIZE && pending < 2 ->      /* a batch of one or two */
#ifdef AVAIL_IDX_FIRST
     store(DRIVER, AVAIL, (sent + 1) % LAPS);
#endif
     store(DRIVER, AVAIL_RING + sent % SIZE, 1 + sent);
     sent++;
     pending++
  :: pending > 0 ->
     store(DRIVER, AVAIL, sent % LAPS);
#ifndef NO_FENCE_KICK
     fence(DRIVER);
#endif
     load(DRIVER, DEVICE_WISH, seen);
     if
     :: PASSED(seen, (sent % LAPS), old) -> kick = 1
     :: else
     fi;
     old = sent % LAPS;
     pending = 0
  :: pending == 0 && back == COUNT -> break
  :: pending == 0 && back < COUNT && (sent == COUNT || sent - back == SIZE) ->
     load(DRIVER, USED, seen);
     if
     :: seen != back % LAPS ->
        load(DRIVER, USED_RING + back % SIZE, element);
        assert(element == 1 + back);                            /* in order, whole, once */
        back++
     :: else ->
#ifdef LATE_ARM_CALL
        load(DRIVER, USED, seen);
#endif
        ARM(DRIVER, DRIVER_WISH, back % LAPS);
#ifndef NO_FENCE_ARM_CALL
        fence(DRIVER);
#endif
#ifdef NO_LOOK_CALL
        seen = back % LAPS;
#else
#ifndef LATE_ARM_CALL
        load(DRIVER, USED, seen);
#endif
#endif
        if
        :: seen == back % LAPS -> SLEEP(call)
        :: else
        fi;
        DISARM(DRIVER, DRIVER_WISH)
     fi
  od
}

proctype device() {
  byte i, seen, element;
  byte taken, old;       /* all messages so far; what was last shown */

  DISARM(DEVICE, DEVICE_WISH);
  do
  :: taken == COUNT && old == taken % LAPS -> break
  :: old != taken % LAPS ->                                     /* one or more at a time */
     store(DEVICE, USED, taken % LAPS);
#ifndef NO_FENCE_CALL
     fence(DEVICE);
#endif
     load(DEVICE, DRIVER_WISH, seen);
     if
     :: PASSED(seen, (taken % LAPS), old) -> call = 1
     :: else
     fi;
     old = taken % LAPS
  :: taken < COUNT ->
     load(DEVICE, AVAIL, seen);
     if
     :: seen != taken % LAPS ->
        load(DEVICE, AVAIL_RING + taken % SIZE, element);
        assert(element == 1 + taken);
#ifdef USED_IDX_FIRST
        store(DEVICE, USED, (taken + 1) % LAPS);
#endif
        store(DEVICE, USED_RING + taken % SIZE, element);
        taken++
     :: seen == taken % LAPS && old != taken % LAPS             /* first show, then sleep */
     :: seen == taken % LAPS && old == taken % LAPS ->
#ifdef LATE_ARM_KICK
        load(DEVICE, AVAIL, seen);
#endif
        ARM(DEVICE, DEVICE_WISH, taken % LAPS);
#ifndef NO_FENCE_ARM_KICK
        fence(DEVICE);
#endif
#ifdef NO_LOOK_KICK
        seen = taken % LAPS;
#else
#ifndef LATE_ARM_KICK
        load(DEVICE, AVAIL, seen);
#endif
#endif
        if
        :: seen == taken % LAPS -> SLEEP(kick)
        :: else
        fi;
        DISARM(DEVICE, DEVICE_WISH)
     fi
  od
}

init {
  atomic {
    run driver();
    run device();
    run memory(DRIVER);
    run memory(DEVICE)
  }
}

/* ledger.h - which frame of a stream is where: its protocol, without threads, clocks or pixels. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Every call is one step that the stream makes under its mutex. None waits or allocates, and none takes longer the more
 * frames there are. kernels/test/test_ledger.cpp walks through every order in which threads can make these steps.
 *
 * A frame has an entry from submission until its result is taken:
 *   free -> waiting -> working -> ready -> free      or, dropped:  waiting -> ready,  free -> ready
 * Frames that share engine calls have a group from cutting until publication:
 *   free -> cutting -> cut -> inferring -> scoring -> done -> free
 * Groups are published in the order in which they were formed, whichever is done first. */
#ifndef GRD_LEDGER_H
#define GRD_LEDGER_H

#include <cstddef>
#include <cstdint>
#include <vector>

namespace grd {

constexpr int32_t kNone = -1;
constexpr int32_t kCharges = 2; /* bundles at a time: the one in charge, and one that ends its frames */

/* Threads that must look again at what they wait for. */
struct Wakes {
    bool worker = false;   /* one of those that wait for a job */
    bool producer = false; /* all of those that wait for room */
    bool consumer = false; /* all of those that wait for a result */
    bool idler = false;    /* all of those that wait until something has ended */
    bool workers = false;  /* all of those that wait for a job */
};

enum class Outcome : uint8_t { none, scored, late, dropped, failed };
enum class Overload : uint8_t { block, drop_oldest, drop_newest };
enum class Admission : uint8_t { taken, wait, refused };

struct Counts {
    int64_t submitted = 0, scored = 0, late = 0, dropped = 0, failed = 0;
    int64_t waiting = 0, working = 0; /* in flight */
    int64_t ready = 0;                /* results not yet taken */
    int64_t refused = 0;
};

struct Job {
    enum class Kind : uint8_t { none, cut, infer } kind = Kind::none;
    int32_t group = kNone;
    int32_t engine = kNone; /* of the group's charge, for Kind::infer */
};

class Ledger {
public:
    struct Settings {
        int32_t queue_depth, capacity;
        Overload overload;
        int32_t engines; /* of each charge */
        int32_t groups;  /* of each charge, too */
        int32_t group_frames; /* at most, in a group */
    };

    explicit Ledger(const Settings &settings);

    /* Producers. taken: *entry is the frame's, and *dropped the entry that became ready for it, if any; it may be the same.
     * wait: nothing was done, try again when woken. may_wait = false: refused in place of wait. Once stopped: refused, so
     * that a callback that submits a frame for each that comes back does not keep the stream going. */
    Admission admit(bool may_wait, int32_t *entry, int32_t *dropped);

    /* Workers. First an inference that can begin, oldest group first; none of them: kNone, and frames may be cut. */
    Job next_inference();
    /* Whether a waiting frame can be cut: there is one, and its charge has a free group. */
    bool can_cut() const;
    /* Forms a group of the first n waiting frames, all of one charge; n >= 1, can_cut(). */
    Job next_cut(int32_t n);
    void cut_done(int32_t group);
    /* A group of which no frame can go to the engine: scoring at once. */
    void cut_failed(int32_t group);
    void infer_done(int32_t group);
    /* The outcome of a working frame, before its group is done. */
    void settle(int32_t entry, Outcome outcome) { entries_[at(entry)].outcome = outcome; }
    void score_done(int32_t group);
    /* The group to publish next, once it is done; else kNone. */
    int32_t publishable() const;
    /* Its frames become ready. */
    void publish(int32_t group);

    /* Consumers. The oldest result, kNone without one; its entry stays until it is released. */
    int32_t take();
    void release(int32_t entry);

    /* A new charge takes what is admitted from now on; the other one must have ended. */
    void hand_over();
    int32_t charge() const { return charge_; }
    /* Whether an inference of it could begin now. */
    bool engine_free(int32_t charge) const { return charges_[charge].free_engines != 0; }
    /* Frames of a charge in flight. */
    int64_t in_flight(int32_t charge) const { return charges_[charge].in_flight; }

    /* Closing: the oldest waiting frame becomes ready, dropped; kNone without one. */
    int32_t drop_waiting();
    void stop();
    bool stopped() const { return stopped_; }
    /* Whether workers may leave: stopped, and no group is under way. */
    bool ended() const { return stopped_ && counts_.waiting + counts_.working == 0; }

    const Counts &counts() const { return counts_; }
    int32_t first_waiting() const { return waiting_.first; }
    int32_t after(int32_t entry) const { return entries_[at(entry)].next; }
    int32_t charge_of_entry(int32_t entry) const { return entries_[at(entry)].charge; }
    Outcome outcome(int32_t entry) const { return entries_[at(entry)].outcome; }
    int32_t charge_of_group(int32_t group) const { return group / settings_.groups; }
    int32_t group_size(int32_t group) const { return groups_[at(group)].count; }
    int32_t member(int32_t group, int32_t i) const { return members_[at(group * settings_.group_frames + i)]; }
    /* The first frame of the oldest group under way, kNone without one. */
    int32_t oldest_working() const;

    /* A worker does something else before it looks for a job: another one shall. */
    void pass_on() {
        if (has_job()) wakes_.worker = true;
    }

    /* Whom the steps since the last call concern. */
    Wakes wakes();

private:
    enum class State : uint8_t { free, waiting, working, ready };
    enum class Stage : uint8_t { free, cutting, cut, inferring, scoring, done };
    struct Entry {
        State state = State::free;
        Outcome outcome = Outcome::none;
        int8_t charge = 0;
        int32_t next = kNone;
    };
    struct Group {
        Stage stage = Stage::free;
        int32_t count = 0;
        int32_t engine = kNone;
        int64_t order = 0;
    };
    struct Charge {
        int64_t in_flight = 0;
        int32_t free_groups = 0;
        uint32_t free_engines = 0; /* bits */
    };
    /* Entries in order of arrival, linked by their next. */
    struct Queue {
        int32_t first = kNone, last = kNone;
    };

    static size_t at(int32_t i) { return static_cast<size_t>(i); }
    void push(Queue *queue, int32_t entry);
    int32_t pop(Queue *queue);
    void make_ready(int32_t entry, Outcome outcome);
    void left(int32_t charge);
    bool has_job() const;
    const Group *next_to_infer() const;

    Settings settings_;
    std::vector<Entry> entries_;
    std::vector<Group> groups_;
    std::vector<int32_t> members_;
    Queue free_, waiting_, ready_;
    Charge charges_[kCharges];
    int32_t charge_ = 0;
    int64_t formed_ = 0, published_ = 0; /* groups */
    bool stopped_ = false;
    Counts counts_;
    Wakes wakes_;

    friend struct LedgerProbe; /* of the tests */
};

} // namespace grd
#endif

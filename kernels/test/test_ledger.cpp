/* test_ledger.cpp - walks through every order in which the threads of a stream can make their steps.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The steps are those of the library's own ledger, put together as stream.cpp does under its mutex; threads are models of
 * these. Between a step and the bells it rings others may make theirs, a bell wakes only who sleeps at that moment, and
 * where one of several is woken each is tried. So a lost wake-up is found as a state from which nobody can go on.
 *
 * Checked in every state: submitted = scored + late + dropped + failed + in flight; nobody sleeps, with no bell still to be
 * rung, while there is what it waits for. At the end of every path: each frame came back once, with the bundle that was in
 * charge when it was submitted, and those of one producer that were not dropped in their order; nobody waits. */
#include <array>
#include <cstdio>
#include <cstring>
#include <string>
#include <unordered_set>
#include <vector>

#include "check.h"
#include "ledger.h"

namespace grd {
struct LedgerProbe {
    static bool has_job(const Ledger &ledger) { return ledger.has_job(); }
    static bool has_room(const Ledger &ledger) {
        return ledger.free_.first != kNone && ledger.counts_.waiting < ledger.settings_.queue_depth;
    }
    static void write(const Ledger &ledger, std::string *out) {
        const auto put = [&](int64_t value) { *out += static_cast<char>(value); }; /* all are small */
        for (const Ledger::Entry &entry : ledger.entries_) {
            put(static_cast<int>(entry.state));
            put(static_cast<int>(entry.outcome));
            put(entry.charge);
            put(entry.next);
        }
        for (const Ledger::Group &group : ledger.groups_) {
            put(static_cast<int>(group.stage));
            put(group.count);
            put(group.engine);
            put(group.order - ledger.published_);
        }
        for (const int32_t member : ledger.members_) put(member);
        for (const Ledger::Queue *queue : {&ledger.free_, &ledger.waiting_, &ledger.ready_}) {
            put(queue->first);
            put(queue->last);
        }
        for (const Ledger::Charge &charge : ledger.charges_) {
            put(charge.in_flight);
            put(charge.free_engines);
        }
        put(ledger.charge_);
        put(ledger.stopped_);
        const Counts &counts = ledger.counts_;
        for (const int64_t count : {counts.submitted, counts.dropped, counts.failed, counts.waiting, counts.working})
            put(count);
    }
};
} // namespace grd

using namespace grd;

namespace {

struct Setup {
    const char *name;
    Overload overload;
    int queue_depth, capacity, engines, workers, group_frames;
    int producers, frames; /* frames of each */
    bool consumer, callback, swaps, fails, flushes, closes;
};

constexpr int kMost = 10; /* threads, and frames */

enum class At : char { ready, asleep, cutting, inferring, scoring, telling, done };
enum class Sleeps : char { no, work, room, result, idle };

struct Thread {
    At at = At::ready;
    Sleeps sleeps = Sleeps::no;
    Wakes wakes; /* bells to ring before its next step */
    bool rings = false;
    int8_t group = kNone, entry = kNone, made = 0;
};

struct World {
    explicit World(const Setup &setup)
        : ledger({setup.queue_depth, setup.capacity, setup.overload, setup.engines, setup.workers, setup.group_frames}) {
        for (auto &id : id_of) id = kNone;
    }
    Ledger ledger;
    std::array<Thread, kMost> threads;
    std::array<int8_t, kMost> id_of;     /* frame by entry */
    std::array<int8_t, kMost> came{};    /* times that a frame came back */
    std::array<int8_t, kMost> charge{};  /* in charge when it was submitted */
    std::array<int8_t, 2> last{{-1, -1}}; /* of a producer, of those that were not dropped */
    int8_t refused = 0, swapped = 0;
    bool delivering = false, broken = false;
};

class Walk {
public:
    explicit Walk(const Setup &setup) : setup_(setup) {
        names_ = std::string(static_cast<size_t>(setup.workers), 'w') + std::string(static_cast<size_t>(setup.producers), 'p');
        if (setup.consumer) names_ += 'c';
        if (setup.swaps) names_ += 's';
        if (setup.flushes) names_ += 'f';
        if (setup.closes) names_ += 'x';
    }

    void run() {
        visit(World(setup_));
        while (!open_.empty() && failures_ == 0) {
            const World world = open_.back();
            open_.pop_back();
            bool moved = false;
            for (size_t i = 0; i < names_.size(); ++i) moved = step(world, i) || moved;
            if (!moved) end(world);
        }
        std::printf("%s: %zu states, %zu ends\n", setup_.name, seen_.size(), ends_);
        CHECK(failures_ == 0);
        CHECK(ends_ > 0);
    }

private:
    void fail(const char *what) {
        if (failures_++ < 3) std::printf("%s: %s\n", setup_.name, what);
    }

    void visit(World world) {
        const Counts &counts = world.ledger.counts();
        if (counts.submitted != counts.scored + counts.late + counts.dropped + counts.failed + counts.waiting + counts.working)
            fail("the counts do not add up");
        if (counts.waiting > setup_.queue_depth) fail("too many frames wait");
        if (sleeps_in_vain(world)) fail("a thread sleeps while there is what it waits for");
        if (world.broken) fail("a frame came back twice, in the wrong order, or from the wrong bundle");
        std::string key;
        LedgerProbe::write(world.ledger, &key);
        for (size_t i = 0; i < names_.size(); ++i) {
            const Thread &thread = world.threads[i];
            const Wakes &wakes = thread.wakes;
            key += static_cast<char>(thread.at);
            key += static_cast<char>(thread.sleeps);
            key += static_cast<char>(thread.rings | wakes.worker << 1 | wakes.producer << 2 | wakes.consumer << 3 |
                                     wakes.idler << 4 | wakes.workers << 5);
            key += static_cast<char>(thread.group);
            key += static_cast<char>(thread.entry);
            key += static_cast<char>(thread.made);
        }
        key.append(reinterpret_cast<const char *>(world.id_of.data()), kMost);
        key.append(reinterpret_cast<const char *>(world.came.data()), kMost);
        key.append(reinterpret_cast<const char *>(world.charge.data()), kMost);
        key.append(reinterpret_cast<const char *>(world.last.data()), 2);
        key += static_cast<char>(world.refused);
        key += static_cast<char>(world.swapped);
        key += static_cast<char>(world.delivering);
        if (seen_.insert(std::move(key)).second) open_.push_back(std::move(world));
    }

    bool sleeps_in_vain(const World &world) const {
        bool looks = false; /* a worker that takes a job next, and wakes another if there are more */
        for (size_t i = 0; i < names_.size(); ++i) {
            if (world.threads[i].rings) return false;
            looks = looks || (names_[i] == 'w' && world.threads[i].at == At::ready);
        }
        for (size_t i = 0; i < names_.size(); ++i) {
            const Thread &thread = world.threads[i];
            if (thread.at != At::asleep) continue;
            if (thread.sleeps == Sleeps::work && !looks && LedgerProbe::has_job(world.ledger)) return true;
            if (thread.sleeps == Sleeps::room && LedgerProbe::has_room(world.ledger)) return true;
            if (thread.sleeps == Sleeps::result && world.ledger.counts().ready > 0) return true;
        }
        return false;
    }

    /* Leaves the mutex after a step. */
    void leave(World world, size_t i) {
        Thread &thread = world.threads[i];
        thread.wakes = world.ledger.wakes();
        const Wakes &wakes = thread.wakes;
        thread.rings = wakes.worker || wakes.producer || wakes.consumer || wakes.idler || wakes.workers;
        visit(std::move(world));
    }

    /* Bells are rung with the mutex held, then it sleeps: at once, as a condition variable does. */
    void sleep(World world, size_t i, Sleeps on) {
        world.threads[i].at = At::asleep;
        world.threads[i].sleeps = on;
        const Wakes wakes = world.ledger.wakes();
        ring(std::move(world), i, wakes);
    }

    static bool wanted(const Wakes &wakes, Sleeps on) {
        return (on == Sleeps::work && wakes.workers) || (on == Sleeps::room && wakes.producer) ||
               (on == Sleeps::result && wakes.consumer) || (on == Sleeps::idle && wakes.idler);
    }

    void ring(World world, size_t ringer, const Wakes &wakes) {
        world.threads[ringer].rings = false;
        world.threads[ringer].wakes = Wakes();
        std::vector<size_t> workers;
        for (size_t i = 0; i < names_.size(); ++i) {
            Thread &thread = world.threads[i];
            if (thread.at != At::asleep || i == ringer) continue; /* whoever goes to sleep rang before */
            if (wanted(wakes, thread.sleeps)) {
                thread.at = At::ready;
                thread.sleeps = Sleeps::no;
            } else if (thread.sleeps == Sleeps::work) {
                workers.push_back(i);
            }
        }
        if (!wakes.worker || wakes.workers || workers.empty()) return visit(std::move(world));
        for (const size_t i : workers) {
            World other = world;
            other.threads[i].at = At::ready;
            other.threads[i].sleeps = Sleeps::no;
            visit(std::move(other));
        }
    }

    /* A frame's result was taken. */
    void came_back(World *world, int32_t entry) {
        const int id = world->id_of[static_cast<size_t>(entry)];
        const bool dropped = world->ledger.outcome(entry) == Outcome::dropped;
        const auto producer = static_cast<size_t>(id / setup_.frames);
        world->broken = world->broken || ++world->came[static_cast<size_t>(id)] > 1 ||
                        world->ledger.charge_of_entry(entry) != world->charge[static_cast<size_t>(id)] ||
                        (!dropped && world->last[producer] >= id);
        if (!dropped) world->last[producer] = static_cast<int8_t>(id);
    }

    bool step(const World &from, size_t i) {
        const Thread &thread = from.threads[i];
        if (thread.rings) return ring(from, i, thread.wakes), true;
        if (thread.at == At::asleep || thread.at == At::done) return false;
        switch (names_[i]) {
        case 'w':
            return worker(from, i);
        case 'p':
            return produce(from, i), true;
        case 'c':
            return consume(from, i), true;
        case 's':
            return swap(from, i), true;
        case 'f':
            return flush(from, i);
        default:
            return close(from, i);
        }
    }

    void produce(World world, size_t i) {
        Thread &thread = world.threads[i];
        if (thread.made == setup_.frames) {
            thread.at = At::done;
            return visit(std::move(world));
        }
        int32_t entry = kNone, dropped = kNone;
        switch (world.ledger.admit(true, &entry, &dropped)) {
        case Admission::wait:
            return sleep(std::move(world), i, Sleeps::room);
        case Admission::refused:
            ++world.refused;
            ++thread.made;
            return leave(std::move(world), i);
        default:
            const int first = (static_cast<int>(i) - setup_.workers) * setup_.frames;
            const auto id = static_cast<size_t>(first + thread.made++);
            world.id_of[static_cast<size_t>(entry)] = static_cast<int8_t>(id);
            world.charge[id] = static_cast<int8_t>(world.ledger.charge());
            leave_telling(std::move(world), i, dropped != kNone);
        }
    }

    /* submit() wakes a worker for what it dropped, which goes to the callback. */
    void leave_telling(World world, size_t i, bool tell) {
        Thread &thread = world.threads[i];
        thread.wakes = world.ledger.wakes();
        thread.wakes.worker = thread.wakes.worker || (tell && setup_.callback);
        const Wakes &wakes = thread.wakes;
        thread.rings = wakes.worker || wakes.producer || wakes.consumer || wakes.idler || wakes.workers;
        visit(std::move(world));
    }

    void consume(World world, size_t i) {
        int all = 0;
        for (const int8_t count : world.came) all += count;
        if (all + world.refused == setup_.producers * setup_.frames) {
            world.threads[i].at = At::done;
            return visit(std::move(world));
        }
        const int32_t entry = world.ledger.take();
        if (entry == kNone) return sleep(std::move(world), i, Sleeps::result);
        came_back(&world, entry);
        world.ledger.release(entry);
        leave(std::move(world), i);
    }

    void swap(World world, size_t i) {
        Thread &thread = world.threads[i];
        if (thread.made == 0) {
            thread.made = 1;
            thread.group = static_cast<int8_t>(world.ledger.charge());
            world.ledger.hand_over();
        }
        if (world.ledger.in_flight(thread.group) > 0) return sleep(std::move(world), i, Sleeps::idle);
        thread.made = 0;
        if (++world.swapped == 2) thread.at = At::done;
        leave(std::move(world), i);
    }

    bool flush(const World &from, size_t i) {
        for (size_t k = 0; k < names_.size(); ++k)
            if (names_[k] == 'p' && from.threads[k].at != At::done) return false;
        World world = from;
        const Counts &counts = world.ledger.counts();
        if (counts.waiting + counts.working > 0 || (setup_.callback && (counts.ready > 0 || world.delivering)))
            return sleep(std::move(world), i, Sleeps::idle), true;
        world.threads[i].at = At::done;
        return visit(std::move(world)), true;
    }

    /* After all other callers, as close is the last call. */
    bool close(const World &from, size_t i) {
        for (size_t k = 0; k < names_.size(); ++k)
            if (std::strchr("pcsf", names_[k]) != nullptr && from.threads[k].at != At::done) return false;
        World world = from;
        world.ledger.stop();
        while (world.ledger.drop_waiting() != kNone) {}
        world.threads[i].at = At::done;
        return leave(std::move(world), i), true;
    }

    bool worker(const World &from, size_t i) {
        World world = from;
        Thread &thread = world.threads[i];
        switch (thread.at) {
        case At::cutting:
            if (setup_.fails) {
                World other = world;
                other.ledger.cut_failed(thread.group);
                publish(std::move(other), i, Outcome::failed);
            }
            world.ledger.cut_done(thread.group);
            return job(std::move(world), i), true;
        case At::inferring:
            world.ledger.infer_done(thread.group);
            thread.at = At::scoring;
            return leave(std::move(world), i), true;
        case At::scoring:
            return publish(std::move(world), i, Outcome::scored), true;
        case At::telling:
            world.ledger.release(thread.entry);
            return tell(std::move(world), i), true;
        default:
            return job(std::move(world), i), true;
        }
    }

    void publish(World world, size_t i, Outcome outcome) {
        Thread &thread = world.threads[i];
        for (int32_t k = 0; k < world.ledger.group_size(thread.group); ++k)
            world.ledger.settle(world.ledger.member(thread.group, k), outcome);
        world.ledger.score_done(thread.group);
        for (int32_t group; (group = world.ledger.publishable()) != kNone;) world.ledger.publish(group);
        thread.group = kNone;
        thread.at = At::ready;
        if (setup_.callback && !world.delivering) {
            world.delivering = true;
            return tell(std::move(world), i);
        }
        job(std::move(world), i);
    }

    /* Hands the next result to the callback, or ends that. */
    void tell(World world, size_t i) {
        Thread &thread = world.threads[i];
        const int32_t entry = world.ledger.take();
        thread.entry = static_cast<int8_t>(entry);
        if (entry != kNone) {
            came_back(&world, entry);
            thread.at = At::telling;
            world.ledger.pass_on();
            return leave(std::move(world), i);
        }
        world.delivering = false;
        thread.at = At::ready;
        for (size_t k = 0; k < names_.size(); ++k)
            if (world.threads[k].at == At::asleep && world.threads[k].sleeps == Sleeps::idle) {
                world.threads[k].at = At::ready;
                world.threads[k].sleeps = Sleeps::no;
            }
        job(std::move(world), i);
    }

    void job(World world, size_t i) {
        Thread &thread = world.threads[i];
        thread.at = At::ready;
        if (setup_.callback && world.ledger.counts().ready > 0 && !world.delivering) {
            world.delivering = true;
            return tell(std::move(world), i);
        }
        const Job inference = world.ledger.next_inference();
        if (inference.kind == Job::Kind::infer) {
            thread.at = At::inferring;
            thread.group = static_cast<int8_t>(inference.group);
            return leave(std::move(world), i);
        }
        if (world.ledger.can_cut()) {
            const int32_t first = world.ledger.first_waiting(), number = world.ledger.charge_of_entry(first);
            int32_t n = 0;
            for (int32_t entry = first; entry != kNone && n < setup_.group_frames; entry = world.ledger.after(entry)) {
                if (world.ledger.charge_of_entry(entry) != number) break;
                ++n;
                World other = world;
                Thread &cutter = other.threads[i];
                cutter.group = static_cast<int8_t>(other.ledger.next_cut(n).group);
                cutter.at = At::cutting;
                if (other.ledger.charge_of_group(cutter.group) != number) fail("a group of the wrong bundle");
                leave(std::move(other), i);
            }
            return;
        }
        if (world.ledger.ended()) {
            thread.at = At::done;
            return leave(std::move(world), i);
        }
        sleep(std::move(world), i, Sleeps::work);
    }

    void end(const World &world) {
        ++ends_;
        const Counts &counts = world.ledger.counts();
        if (counts.waiting + counts.working != 0) fail("frames stay in flight for ever");
        int all = world.refused;
        for (const int8_t count : world.came) all += count;
        if (setup_.consumer || setup_.callback) {
            if (all != setup_.producers * setup_.frames) fail("a frame did not come back");
        }
        for (size_t i = 0; i < names_.size(); ++i) {
            const bool sleeps = names_[i] == 'w' && !setup_.closes;
            if (world.threads[i].at != (sleeps ? At::asleep : At::done)) fail("a thread waits for ever");
        }
    }

    Setup setup_;
    std::string names_;
    std::vector<World> open_;
    std::unordered_set<std::string> seen_;
    size_t ends_ = 0;
    int failures_ = 0;
};

} // namespace

int main() {
    const Overload policies[] = {Overload::block, Overload::drop_oldest, Overload::drop_newest};
    const char *names[] = {"block", "drop_oldest", "drop_newest"};
    for (int i = 0; i < 3; ++i) {
        const std::string name = names[i];
        const auto walk = [&](const char *what, int depth, int capacity, int engines, int workers, int shared, int producers,
                              int frames, bool consumer, bool callback, bool swaps, bool fails, bool flushes, bool closes) {
            const std::string title = name + ", " + what;
            Walk({title.c_str(), policies[i], depth, capacity, engines, workers, shared, producers, frames, consumer, callback,
                  swaps, fails, flushes, closes})
                .run();
        };
        walk("one producer", 1, 2, 1, 2, 2, 1, 4, true, false, false, true, false, true);
        walk("two producers", 2, 3, 1, 2, 2, 2, 2, true, false, false, false, true, true);
        walk("two swaps", 2, 4, 1, 2, 1, 1, 3, true, false, true, false, false, false);
        walk("two engines", 2, 4, 2, 3, 1, 1, 3, true, false, false, false, false, false);
        walk("closed at work", 2, 4, 1, 2, 2, 1, 4, false, false, false, true, false, true);
        walk("callback, closed at work", 2, 4, 1, 2, 2, 1, 3, false, true, false, false, false, true);
        walk("callback", 1, 3, 1, 2, 2, 1, 4, false, true, false, true, true, true);
        walk("callback, two engines, two swaps", 2, 4, 2, 2, 1, 1, 3, false, true, true, false, true, false);
    }
    return checks_report();
}

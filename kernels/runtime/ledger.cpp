/* ledger.cpp - which frame of a stream is where.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Who is woken: after a step that makes a job possible a worker looks for one itself, or passes it on to another, and
 * whoever takes a job passes on what is left. So no job is left while a worker sleeps, and none is woken for nothing. */
#include "ledger.h"

namespace grd {

Ledger::Ledger(const Settings &settings)
    : settings_(settings), entries_(at(settings.capacity)), groups_(at(settings.groups * kCharges)),
      members_(at(settings.groups * kCharges * settings.group_frames), kNone) {
    for (int32_t i = 0; i < settings.capacity; ++i) push(&free_, i);
    for (Charge &charge : charges_) {
        charge.free_groups = settings.groups;
        charge.free_engines = (uint32_t{1} << settings.engines) - 1;
    }
}

void Ledger::push(Queue *queue, int32_t entry) {
    entries_[at(entry)].next = kNone;
    if (queue->last == kNone) queue->first = entry;
    else entries_[at(queue->last)].next = entry;
    queue->last = entry;
}

int32_t Ledger::pop(Queue *queue) {
    const int32_t entry = queue->first;
    if (entry == kNone) return kNone;
    queue->first = entries_[at(entry)].next;
    if (queue->first == kNone) queue->last = kNone;
    return entry;
}

void Ledger::make_ready(int32_t entry, Outcome outcome) {
    entries_[at(entry)].state = State::ready;
    entries_[at(entry)].outcome = outcome;
    push(&ready_, entry);
    ++counts_.ready;
    switch (outcome) {
    case Outcome::scored:
        ++counts_.scored;
        break;
    case Outcome::late:
        ++counts_.late;
        break;
    case Outcome::dropped:
        ++counts_.dropped;
        break;
    default:
        ++counts_.failed;
    }
    wakes_.consumer = true;
}

/* A frame of a charge is in flight no more. */
void Ledger::left(int32_t charge) {
    if (--charges_[charge].in_flight == 0) wakes_.idler = true;
}

Admission Ledger::admit(bool may_wait, int32_t *entry, int32_t *dropped) {
    *entry = *dropped = kNone;
    const bool full = counts_.waiting >= settings_.queue_depth;
    if (stopped_ || free_.first == kNone || (full && settings_.overload == Overload::block)) {
        if (!stopped_ && settings_.overload == Overload::block && may_wait) return Admission::wait;
        ++counts_.refused;
        return Admission::refused;
    }
    if (full && settings_.overload == Overload::drop_oldest) *dropped = drop_waiting();
    *entry = pop(&free_);
    ++counts_.submitted;
    Entry &taken = entries_[at(*entry)];
    taken.charge = static_cast<int8_t>(charge_);
    if (full && settings_.overload == Overload::drop_newest) {
        *dropped = *entry;
        make_ready(*entry, Outcome::dropped);
        return Admission::taken;
    }
    taken.state = State::waiting;
    taken.outcome = Outcome::none;
    push(&waiting_, *entry);
    ++counts_.waiting;
    ++charges_[charge_].in_flight;
    pass_on();
    return Admission::taken;
}

int32_t Ledger::drop_waiting() {
    const int32_t entry = pop(&waiting_);
    if (entry == kNone) return kNone;
    --counts_.waiting;
    left(entries_[at(entry)].charge);
    make_ready(entry, Outcome::dropped);
    return entry;
}

/* The oldest group that is cut and finds an engine. There are few groups: at most one for each thread of the stream. */
const Ledger::Group *Ledger::next_to_infer() const {
    const Group *best = nullptr;
    for (size_t i = 0; i < groups_.size(); ++i) {
        const Group &group = groups_[i];
        if (group.stage != Stage::cut || charges_[charge_of_group(static_cast<int32_t>(i))].free_engines == 0) continue;
        if (best == nullptr || group.order < best->order) best = &group;
    }
    return best;
}

bool Ledger::can_cut() const {
    return waiting_.first != kNone && charges_[entries_[at(waiting_.first)].charge].free_groups > 0;
}

bool Ledger::has_job() const { return can_cut() || next_to_infer() != nullptr; }

Job Ledger::next_inference() {
    const Group *next = next_to_infer();
    Job job;
    if (next == nullptr) return job;
    job.kind = Job::Kind::infer;
    job.group = static_cast<int32_t>(next - groups_.data());
    Charge &charge = charges_[charge_of_group(job.group)];
    for (job.engine = 0; (charge.free_engines >> job.engine & 1) == 0;) ++job.engine;
    charge.free_engines &= ~(uint32_t{1} << job.engine);
    Group &group = groups_[at(job.group)];
    group.stage = Stage::inferring;
    group.engine = job.engine;
    pass_on();
    return job;
}

Job Ledger::next_cut(int32_t n) {
    Job job;
    job.kind = Job::Kind::cut;
    const int32_t charge = entries_[at(waiting_.first)].charge;
    job.group = charge * settings_.groups;
    while (groups_[at(job.group)].stage != Stage::free) ++job.group;
    Group &group = groups_[at(job.group)];
    --charges_[charge].free_groups;
    group.stage = Stage::cutting;
    group.order = formed_++;
    group.count = n;
    for (int32_t i = 0; i < n; ++i) {
        const int32_t entry = pop(&waiting_);
        entries_[at(entry)].state = State::working;
        members_[at(job.group * settings_.group_frames + i)] = entry;
    }
    counts_.waiting -= n;
    counts_.working += n;
    wakes_.producer = true;
    pass_on();
    return job;
}

void Ledger::cut_done(int32_t group) { groups_[at(group)].stage = Stage::cut; }

void Ledger::cut_failed(int32_t group) { groups_[at(group)].stage = Stage::scoring; }

void Ledger::infer_done(int32_t group) {
    Group &done = groups_[at(group)];
    charges_[charge_of_group(group)].free_engines |= uint32_t{1} << done.engine;
    done.stage = Stage::scoring;
    done.engine = kNone;
    pass_on();
}

void Ledger::score_done(int32_t group) { groups_[at(group)].stage = Stage::done; }

int32_t Ledger::publishable() const {
    for (size_t i = 0; i < groups_.size(); ++i)
        if (groups_[i].stage == Stage::done && groups_[i].order == published_) return static_cast<int32_t>(i);
    return kNone;
}

void Ledger::publish(int32_t group) {
    Group &done = groups_[at(group)];
    const int32_t charge = charge_of_group(group);
    for (int32_t i = 0; i < done.count; ++i) {
        const int32_t entry = member(group, i);
        --counts_.working;
        left(charge);
        make_ready(entry, entries_[at(entry)].outcome);
    }
    done.stage = Stage::free;
    done.count = 0;
    ++charges_[charge].free_groups;
    ++published_;
    if (ended()) wakes_.workers = true;
}

int32_t Ledger::take() {
    const int32_t entry = pop(&ready_);
    if (entry != kNone) --counts_.ready;
    return entry;
}

void Ledger::release(int32_t entry) {
    entries_[at(entry)].state = State::free;
    push(&free_, entry);
    wakes_.producer = true;
}

void Ledger::hand_over() { charge_ = 1 - charge_; }

void Ledger::stop() {
    stopped_ = true;
    wakes_.workers = true;
}

int32_t Ledger::oldest_working() const {
    const Group *oldest = nullptr;
    for (const Group &group : groups_)
        if (group.stage != Stage::free && (oldest == nullptr || group.order < oldest->order)) oldest = &group;
    return oldest == nullptr ? kNone : member(static_cast<int32_t>(oldest - groups_.data()), 0);
}

Wakes Ledger::wakes() {
    const Wakes due = wakes_;
    wakes_ = Wakes();
    return due;
}

} // namespace grd

//! Scripts: one machine (or two) against a lease that the script keeps, at times that the script gives.

use super::*;

/// The store of a script: the record, and a version that grows.
#[derive(Default)]
struct Place {
    held: Option<(LeaseRecord, u64)>,
    versions: u64,
}

impl Place {
    fn swap(&mut self, expected: Option<u64>, record: LeaseRecord) -> Written<u64> {
        if self.held.as_ref().map(|(_, version)| *version) != expected {
            return Written::Refused;
        }
        self.versions += 1;
        self.held = Some((record, self.versions));
        Written::Done(self.versions)
    }
}

/// One would-be holder with a TTL of 12 seconds: margin 1.7 s, look 1 s, renewal after 4 s, answers within 3 s.
struct Holder {
    lease: Lease<u64>,
    nonces: u16,
    tag: u8,
    slept_until: u64,
}

impl Holder {
    fn new(name: &str, tag: u8, dead: &[Nonce], now: u64) -> Self {
        let terms = Terms::new(Duration::from_secs(12), name.to_owned());
        Self { lease: Lease::new(terms, Guards::ALL, dead, Monotonic(now)), nonces: 0, tag, slept_until: now }
    }

    fn poll(&mut self, now: u64) -> Option<Request<u64>> {
        let mut nonce = [self.tag; 16];
        nonce[..2].copy_from_slice(&self.nonces.to_be_bytes());
        self.nonces += 1;
        self.lease.poll_request(Moment { now: Monotonic(now), wall: Timestamp(0), nonce: Nonce(nonce) })
    }

    /// Does everything that is due at `now`, with answers at once.
    fn run(&mut self, place: &mut Place, now: u64) {
        while let Some(request) = self.poll(now) {
            match request {
                Request::Read(id) => self.lease.handle_read(id, Ok(place.held.clone()), Monotonic(now)),
                Request::Write { id, expected, record } => {
                    self.lease.handle_written(id, place.swap(expected, record), Monotonic(now));
                }
            }
        }
    }

    /// Sleeps and acts as the machine says, from where it was last until `end`.
    fn live(&mut self, place: &mut Place, end: u64) {
        while let Some(Monotonic(next)) = self.lease.poll_timeout().filter(|at| at.0 <= end) {
            self.run(place, next.max(self.slept_until));
        }
        self.slept_until = end;
    }

    /// Is not at work until then.
    fn pause(&mut self, until: u64) {
        self.slept_until = until;
    }

    fn check(&self, now: u64, expected: &str) {
        let said = match self.lease.standing() {
            Standing::Unknown => "unknown".to_owned(),
            Standing::Theirs { record, free } => {
                format!("{} has {} until {}", record.holder, record.epoch.get(), free.0)
            }
            Standing::Ours { epoch, until, origin } if Monotonic(now) < until => {
                format!("ours {} until {}{}", epoch.get(), until.0, if origin.seized { ", seized" } else { "" })
            }
            Standing::Ours { epoch, .. } => format!("ours {} run out", epoch.get()),
            Standing::Ended => "ended".to_owned(),
        };
        assert_eq!(said, expected, "at {now}");
    }
}

fn write_of(request: Option<Request<u64>>) -> (RequestId, Option<u64>, LeaseRecord) {
    match request {
        Some(Request::Write { id, expected, record }) => (id, expected, record),
        other => panic!("expected a write, not {other:?}"),
    }
}

fn read_of(request: Option<Request<u64>>) -> RequestId {
    match request {
        Some(Request::Read(id)) => id,
        other => panic!("expected a read, not {other:?}"),
    }
}

/// A holder that has it since 0, and its place.
fn held() -> (Holder, Place) {
    let (mut a, mut place) = (Holder::new("a", 1, &[], 0), Place::default());
    a.run(&mut place, 0);
    a.check(0, "ours 1 until 12000");
    (a, place)
}

#[test]
fn the_first_takes_it_and_renews_it() {
    let (mut a, mut place) = held();
    a.live(&mut place, 100_000);
    a.check(100_000, "ours 1 until 112000");
    assert_eq!(place.versions, 1 + 25, "a write every third of its time");
}

#[test]
fn the_second_waits_and_takes_over_when_the_first_is_gone() {
    let (mut a, mut place) = held();
    let mut b = Holder::new("b", 2, &[], 1_000);
    b.live(&mut place, 3_000);
    b.check(3_000, "a has 1 until 14700");
    a.live(&mut place, 4_000);
    b.live(&mut place, 6_000);
    b.check(6_000, "a has 1 until 17700");
    // From here on a is silent. It was last renewed at 4,000, and b has seen that at 4,000.
    b.live(&mut place, 17_699);
    b.check(17_699, "a has 1 until 17700");
    b.live(&mut place, 17_700);
    b.check(17_700, "ours 2 until 29700, seized");
    b.live(&mut place, 17_900);
    a.check(17_700, "ours 1 run out");
    a.pause(17_700);
    a.live(&mut place, 20_000);
    a.check(20_000, "b has 2 until 31400");
    assert_eq!(place.held.unwrap().0.holder, "b");
}

#[test]
fn a_released_lease_is_taken_at_the_next_look() {
    let (mut a, mut place) = held();
    let mut b = Holder::new("b", 2, &[], 0);
    b.live(&mut place, 500);
    a.lease.release(LastWill::default());
    a.run(&mut place, 600);
    a.check(600, "ended");
    assert_eq!(a.lease.poll_timeout(), None);
    b.live(&mut place, 1_000);
    b.check(1_000, "ours 2 until 13000");
}

#[test]
fn only_a_lease_that_was_given_up_quietly_needs_no_fence() {
    for is_quiet in [false, true] {
        let (mut a, mut place) = held();
        let mut b = Holder::new("b", 2, &[], 0);
        b.live(&mut place, 500);
        a.lease.release(LastWill { is_quiet, successor: None });
        // What was said first counts.
        a.lease.release(LastWill { is_quiet: !is_quiet, successor: None });
        a.run(&mut place, 600);
        assert_eq!(place.held.as_ref().unwrap().0.quiet, is_quiet);
        b.live(&mut place, 1_000);
        let Standing::Ours { origin, .. } = b.lease.standing() else { panic!("it was free") };
        assert_eq!((origin.was_quiet, origin.seized), (is_quiet, false));
        assert!(!place.held.as_ref().unwrap().0.quiet, "nobody who has it says so");
    }
    let (mut a, mut place) = held();
    a.pause(u64::MAX);
    let mut b = Holder::new("b", 2, &[], 0);
    b.live(&mut place, 20_000);
    let Standing::Ours { origin, .. } = b.lease.standing() else { panic!("it has run out") };
    assert!(!origin.was_quiet && origin.seized);
}

#[test]
fn witnesses_stay_with_whoever_takes_the_lease_until_the_holder_says_otherwise() {
    let list = |of: &str| Some(Witnesses { of: of.to_owned(), count: 1, nodes: vec!["x".to_owned()] });
    let written = |place: &Place| place.held.as_ref().unwrap().0.witnesses.clone();
    let (mut a, mut place) = held();
    let mut b = Holder::new("b", 2, &[], 0);
    b.live(&mut place, 500);
    a.lease.set_witnesses(7, list("a"));
    a.live(&mut place, 900);
    assert_eq!(written(&place), None, "that was for another tenure");
    a.lease.set_witnesses(1, list("a"));
    assert_eq!(a.lease.witnesses(), None, "not yet");
    a.run(&mut place, 1_000);
    assert_eq!((written(&place), a.lease.witnesses().cloned()), (list("a"), list("a")));
    let versions = place.versions;
    a.live(&mut place, 4_999);
    assert_eq!(place.versions, versions, "written once");
    // From here on a is silent.
    b.live(&mut place, 30_000);
    let Standing::Ours { origin, .. } = b.lease.standing() else { panic!("it has run out") };
    assert_eq!((written(&place), b.lease.witnesses().cloned()), (list("a"), list("a")));
    b.lease.set_witnesses(origin.tenure, list("b"));
    b.run(&mut place, 30_001);
    assert_eq!(written(&place), list("b"));
    b.lease.release(LastWill::default());
    b.run(&mut place, 30_002);
    assert_eq!(written(&place), list("b"), "who gives it up without a word leaves them");
    let mut c = Holder::new("c", 3, &[], 30_003);
    c.live(&mut place, 31_000);
    let Standing::Ours { origin, .. } = c.lease.standing() else { panic!("it was free") };
    c.lease.set_witnesses(origin.tenure, None);
    c.lease.release(LastWill::default());
    c.run(&mut place, 31_001);
    assert_eq!(written(&place), None);
}

#[test]
fn a_lease_that_is_given_up_for_one_is_left_to_that_one_for_a_while() {
    for comes in [true, false] {
        let (mut a, mut place) = held();
        let mut others = ["b", "c"].map(|name| {
            let mut other = Holder::new(name, name.as_bytes()[0], &[], 0);
            other.lease.terms.address = Some(name.to_owned());
            other
        });
        others.iter_mut().for_each(|other| other.live(&mut place, 500));
        a.lease.release(LastWill { is_quiet: true, successor: Some("c".to_owned()) });
        a.run(&mut place, 600);
        let [b, c] = &mut others;
        b.live(&mut place, 6_999);
        b.check(6_999, "a has 1 until 7000");
        if comes {
            c.live(&mut place, 6_999);
            assert!(matches!(c.lease.standing(), Standing::Ours { .. }));
            assert_eq!(place.held.as_ref().unwrap().0.successor, None);
        }
        b.live(&mut place, 7_000);
        assert_eq!(matches!(b.lease.standing(), Standing::Ours { .. }), !comes);
    }
}

#[test]
fn who_expects_a_change_looks_closely_for_a_while() {
    let (mut a, mut place) = held();
    let mut b = Holder::new("b", 2, &[], 0);
    b.live(&mut place, 500);
    b.lease.look_closely(Monotonic(2_500));
    a.lease.release(LastWill { is_quiet: true, successor: None });
    b.run(&mut place, 510);
    a.run(&mut place, 511);
    b.live(&mut place, 531);
    b.check(531, "ours 2 until 12530");
    // Whoever has it renews it as always, and looks as always when the while is over.
    let versions = place.versions;
    b.lease.look_closely(Monotonic(3_000));
    b.live(&mut place, 4_500);
    assert_eq!(place.versions, versions);
    let mut c = Holder::new("c", 3, &[], 5_000);
    c.lease.look_closely(Monotonic(5_100));
    c.run(&mut place, 5_000);
    assert_eq!(c.lease.poll_timeout(), Some(Monotonic(5_020)));
    c.live(&mut place, 5_110);
    assert_eq!(c.lease.poll_timeout(), Some(Monotonic(6_100)));
    // The same moment again is no reason to look.
    c.lease.look_closely(Monotonic(5_100));
    assert_eq!(c.lease.poll_timeout(), Some(Monotonic(6_100)));
}

#[test]
fn who_knows_that_the_holder_is_dead_does_not_wait() {
    let (_, mut place) = held();
    let nonce = place.held.as_ref().unwrap().0.nonce;
    let mut successor = Holder::new("a", 3, &[nonce], 0);
    successor.run(&mut place, 10);
    successor.check(10, "ours 2 until 12010");
}

#[test]
fn a_holder_that_is_found_dead_is_followed_at_once() {
    let (_, mut place) = held();
    let mut b = Holder::new("b", 3, &[], 0);
    b.run(&mut place, 10);
    b.check(10, "a has 1 until 13710");
    b.lease.note_dead(place.held.as_ref().unwrap().0.nonce);
    b.live(&mut place, 1_010);
    b.check(1_010, "ours 2 until 13010");
}

#[test]
fn a_write_whose_answer_was_lost_counts_since_it_was_sent() {
    let (mut a, mut place) = (Holder::new("a", 1, &[], 0), Place::default());
    let id = read_of(a.poll(0));
    a.lease.handle_read(id, Ok(None), Monotonic(0));
    let (_, expected, record) = write_of(a.poll(0));
    place.swap(expected, record);
    assert_eq!(a.lease.poll_timeout(), Some(Monotonic(3_000)), "the answer is waited for");
    a.live(&mut place, 3_000);
    a.check(3_000, "ours 1 until 12000");
}

#[test]
fn a_refused_renewal_that_had_come_in_late_is_recognised() {
    let (mut a, mut place) = held();
    let (lost, expected, record) = write_of(a.poll(4_000));
    a.lease.handle_written(lost, Written::Unknown, Monotonic(5_000));
    // The reading still sees the old version; then the first try comes in, and the second is refused.
    let id = read_of(a.poll(5_000));
    a.lease.handle_read(id, Ok(place.held.clone()), Monotonic(5_100));
    a.check(5_100, "ours 1 until 12000");
    let (second, expected_by_second, other) = write_of(a.poll(5_100));
    assert_eq!(place.swap(expected, record), Written::Done(2));
    let refused = place.swap(expected_by_second, other);
    assert_eq!(refused, Written::Refused);
    a.lease.handle_written(second, refused, Monotonic(5_200));
    a.run(&mut place, 5_200);
    a.check(5_200, "ours 1 until 16000");
}

#[test]
fn an_answer_to_an_earlier_request_says_nothing() {
    let (mut a, mut place) = held();
    let (early, expected, record) = write_of(a.poll(4_000));
    let done = place.swap(expected, record);
    // No answer within three seconds: it reads, and renews again.
    let id = read_of(a.poll(7_000));
    a.lease.handle_written(early, done.clone(), Monotonic(7_050));
    a.lease.handle_read(RequestId(id.0 - 1), Ok(None), Monotonic(7_060));
    a.check(7_060, "ours 1 until 12000");
    a.lease.handle_read(id, Ok(place.held.clone()), Monotonic(7_100));
    a.check(7_100, "ours 1 until 16000");
    let (late, ..) = write_of(a.poll(8_000));
    a.lease.handle_written(early, done, Monotonic(8_100));
    a.check(8_100, "ours 1 until 16000");
    assert!(late > early);
}

#[test]
fn a_lease_that_nobody_touched_while_it_had_run_out_goes_on_under_its_epoch() {
    let (mut a, mut place) = held();
    for now in (4_000..30_000).step_by(100) {
        match a.poll(now) {
            Some(Request::Read(id)) => a.lease.handle_read(id, Err(()), Monotonic(now)),
            Some(Request::Write { id, .. }) => a.lease.handle_written(id, Written::Unknown, Monotonic(now)),
            None => {}
        }
    }
    a.check(30_000, "ours 1 run out");
    a.pause(30_000);
    a.live(&mut place, 31_000);
    let Standing::Ours { epoch, until, .. } = a.lease.standing() else { panic!("{:?}", a.lease.standing()) };
    assert!(epoch == Epoch::FIRST && until > Monotonic(41_000), "{until:?}");
}

#[test]
fn a_store_that_was_put_back_costs_an_epoch() {
    let (mut a, mut place) = held();
    let before = place.held.clone();
    a.live(&mut place, 5_000);
    place.held = before;
    a.live(&mut place, 9_000);
    let Standing::Ours { epoch, .. } = a.lease.standing() else { panic!("{:?}", a.lease.standing()) };
    assert_eq!(epoch.get(), 2, "who writes under this epoch looks again at what the store has");
}

#[test]
fn an_epoch_may_be_asked_for() {
    let (mut a, mut place) = held();
    a.lease.require_epoch(Epoch::new(7).unwrap());
    a.run(&mut place, 100);
    a.check(100, "ours 7 until 12100");
    a.lease.require_epoch(Epoch::new(3).unwrap());
    a.run(&mut place, 200);
    a.check(200, "ours 7 until 12100");
    a.lease.release(LastWill::default());
    a.run(&mut place, 300);
    let mut b = Holder::new("b", 2, &[], 300);
    b.run(&mut place, 400);
    b.check(400, "ours 8 until 12400");
}

#[test]
fn a_lease_that_was_deleted_does_not_make_epochs_go_back() {
    let (mut a, mut place) = held();
    place.held = None;
    a.live(&mut place, 5_000);
    a.check(5_000, "ours 2 until 16000");
}

#[test]
fn the_right_is_gone_when_giving_it_up_is_sent() {
    let (mut a, mut place) = held();
    a.lease.release(LastWill::default());
    let (id, expected, record) = write_of(a.poll(100));
    a.check(100, "ours 1 run out");
    // The answer is lost, and the reading comes before the write: it is still not a's.
    a.lease.handle_written(id, Written::Unknown, Monotonic(200));
    let id = read_of(a.poll(200));
    a.lease.handle_read(id, Ok(place.held.clone()), Monotonic(300));
    a.check(300, "ours 1 run out");
    place.swap(expected, record);
    let mut b = Holder::new("b", 2, &[], 400);
    b.run(&mut place, 400);
    b.check(400, "ours 2 until 12400");
}

#[test]
fn giving_up_ends_even_when_the_store_does_not_answer() {
    let (mut a, _) = held();
    a.lease.release(LastWill::default());
    let mut now = 100;
    while let Some(at) = a.lease.poll_timeout() {
        now = now.max(at.0);
        let _ = a.poll(now);
        assert!(now < 60_000, "it ends");
        if let Some(Request::Read(id)) = a.poll(now) {
            a.lease.handle_read(id, Err(()), Monotonic(now));
        }
    }
    a.check(now, "ended");
}

#[test]
fn the_record_says_what_the_terms_say() {
    let (mut a, _) = (Holder::new("host a", 1, &[], 0), ());
    let id = read_of(a.poll(0));
    a.lease.handle_read(id, Ok(None), Monotonic(0));
    let (_, expected, record) = write_of(a.poll(0));
    assert_eq!((expected, record.format, record.ttl_ms), (None, Format1, 12_000));
    assert_eq!((record.holder.as_str(), record.state), ("host a", LeaseState::Held));
    assert_eq!(LeaseRecord::decode(&record.encode()).unwrap(), record);
}

/// A bucket that is gone answers reads with "nothing there" and refuses every write.
#[test]
fn a_store_that_takes_no_write_is_asked_with_growing_pauses() {
    let mut holder = Holder::new("a", 1, &[], 0);
    let mut times = Vec::new();
    while let Some(Monotonic(now)) = holder.lease.poll_timeout().filter(|at| at.0 < 60_000) {
        while let Some(request) = holder.poll(now) {
            match request {
                Request::Read(id) => holder.lease.handle_read(id, Ok(None), Monotonic(now)),
                Request::Write { id, .. } => {
                    times.push(now);
                    holder.lease.handle_written(id, Written::Unknown, Monotonic(now));
                }
            }
        }
    }
    assert_eq!(times[..6], [0, 0, 400, 1200, 2800, 5800]);
    assert_eq!(times.len(), 5 + 19, "then every 3 s");
}

/// While the right is there, a renewal that fails is tried again soon enough.
#[test]
fn a_renewal_that_fails_is_tried_until_the_right_ends() {
    let (mut holder, mut place) = (Holder::new("a", 1, &[], 0), Place::default());
    holder.run(&mut place, 0);
    let mut tries = 0;
    while let Some(Monotonic(now)) = holder.lease.poll_timeout().filter(|at| at.0 < 12_000) {
        while let Some(request) = holder.poll(now) {
            match request {
                Request::Read(id) => holder.lease.handle_read(id, Ok(place.held.clone()), Monotonic(now)),
                Request::Write { id, .. } => {
                    tries += 1;
                    holder.lease.handle_written(id, Written::Unknown, Monotonic(now));
                }
            }
        }
    }
    assert_eq!(tries, 1 + 8_000 / 400, "at once, then each 400 ms");
    holder.check(11_999, "ours 1 until 12000");
}

#[test]
fn one_that_does_not_compete_only_looks_and_takes_it_as_soon_as_it_does() {
    let mut place = Place::default();
    let mut watcher = Holder::new("watcher", 1, &[], 0);
    watcher.lease.set_competes(false);
    watcher.live(&mut place, 10_000);
    assert!(place.held.is_none(), "there is none, and it makes none");
    let mut holder = Holder::new("holder", 2, &[], 10_000);
    holder.live(&mut place, 10_500);
    holder.lease.release(LastWill::default());
    holder.live(&mut place, 11_000);
    watcher.live(&mut place, 40_000);
    assert_eq!(place.held.as_ref().map(|(record, _)| record.state), Some(LeaseState::Released));
    watcher.lease.set_competes(true);
    watcher.live(&mut place, 40_000);
    assert!(matches!(watcher.lease.standing(), Standing::Ours { epoch, .. } if epoch.get() == 2));
    // What is held is kept, and renewed.
    watcher.lease.set_competes(false);
    watcher.live(&mut place, 100_000);
    assert!(matches!(watcher.lease.standing(), Standing::Ours { until, .. } if until > Monotonic(100_000)));
}

/// A would-be holder at a place that may lose its record.
fn wary(name: &str, tag: u8, now: u64) -> Holder {
    let terms = Terms::new(Duration::from_secs(12), name.to_owned()).where_records_get_lost();
    Holder { lease: Lease::new(terms, Guards::ALL, &[], Monotonic(now)), nonces: 0, tag, slept_until: now }
}

#[test]
fn where_records_get_lost_the_first_is_made_when_a_holder_would_have_run_out() {
    let (mut a, mut place) = (wary("a", 1, 0), Place::default());
    a.live(&mut place, 13_600);
    a.check(13_600, "unknown");
    a.live(&mut place, 13_700);
    a.check(13_700, "ours 1 until 25700");
}

#[test]
fn a_lost_record_is_made_again_by_its_holder_under_a_higher_epoch_before_anybody_else_may() {
    let (mut a, mut place) = (wary("a", 1, 0), Place::default());
    a.live(&mut place, 14_000);
    a.check(14_000, "ours 1 until 25700");
    place.held = None;
    let mut b = wary("b", 2, 14_000);
    b.live(&mut place, 17_000);
    a.live(&mut place, 18_000);
    a.check(18_000, "ours 2 until 29700");
    b.live(&mut place, 19_000);
    b.check(19_000, "a has 2 until 31700");
}

#[test]
fn whoever_finds_a_lost_record_waits_until_its_holder_has_run_out() {
    let (mut a, mut place) = (wary("a", 1, 0), Place::default());
    a.live(&mut place, 14_000);
    place.held = None;
    let mut b = wary("b", 2, 14_000);
    // The holder cannot reach the place; by its own clock it has the right until 25.7 s.
    a.pause(60_000);
    b.live(&mut place, 27_600);
    b.check(27_600, "unknown");
    b.live(&mut place, 27_700);
    b.check(27_700, "ours 1 until 39700");
    b.live(&mut place, 60_000);
    a.live(&mut place, 60_000);
    a.check(60_000, "b has 1 until 73700");
}

/// It was lost, and the service is put back to the time at which it was held: another may hold it now.
#[test]
fn a_former_holder_whose_record_comes_back_waits_and_goes_on_above_the_other() {
    let (mut a, mut place) = held();
    a.live(&mut place, 5_000);
    let before = place.held.clone();
    let mut b = Holder::new("b", 2, &[], 5_000);
    b.live(&mut place, 40_000);
    assert!(matches!(b.lease.standing(), Standing::Ours { epoch, .. } if epoch.get() == 2));
    a.pause(40_000);
    a.live(&mut place, 41_000);
    assert!(matches!(a.lease.standing(), Standing::Theirs { record, .. } if record.holder == "b"));
    place.held = before;
    a.live(&mut place, 43_000);
    let standing = a.lease.standing();
    assert!(matches!(standing, Standing::Theirs { .. }), "the other still has its right: {standing:?}");
    a.live(&mut place, 60_000);
    let Standing::Ours { epoch, .. } = a.lease.standing() else { panic!("{:?}", a.lease.standing()) };
    assert_eq!(epoch.get(), 3, "not one that was there before");
}

#[test]
fn who_finds_a_record_lost_waits_for_as_long_as_that_one_said() {
    let (mut a, mut place) = (wary("a", 1, 0), Place::default());
    a.live(&mut place, 14_000);
    let terms = Terms::new(Duration::from_secs(2), "b".to_owned()).where_records_get_lost();
    let lease = Lease::new(terms, Guards::ALL, &[], Monotonic(14_000));
    let mut b = Holder { lease, nonces: 0, tag: 2, slept_until: 14_000 };
    b.live(&mut place, 15_000);
    place.held = None;
    b.live(&mut place, 27_000);
    b.check(27_000, "unknown");
    b.live(&mut place, 30_000);
    assert!(matches!(b.lease.standing(), Standing::Ours { epoch, .. } if epoch.get() == 2));
}

#[test]
fn what_was_seen_before_nobody_could_look_does_not_count() {
    let (mut b, mut place) = (wary("b", 2, 0), Place::default());
    b.live(&mut place, 10_000);
    let Some(next) = b.lease.poll_timeout() else { panic!("it looks again") };
    let id = read_of(b.poll(next.0));
    b.lease.handle_read(id, Err(()), next);
    b.live(&mut place, 20_000);
    b.check(20_000, "unknown");
    b.live(&mut place, 30_000);
    assert!(matches!(b.lease.standing(), Standing::Ours { .. }));
}

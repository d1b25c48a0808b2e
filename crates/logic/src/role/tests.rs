//! Scripts, and a driver that answers at random times and checks the invariants after each step.

use super::*;

fn ours(until: u64) -> View {
    View::Ours { epoch: Epoch::FIRST, until: Monotonic(until), tenure: 1 }
}

fn held(address: &str) -> View {
    View::Held { address: Some(address.to_owned()) }
}

/// A TTL of 10 s: 2 s of grace, 10 s of abstention.
fn machine() -> RoleMachine {
    RoleMachine::new(RoleTerms::new(Duration::from_secs(10), true))
}

/// Everything that the machine wants at `now`.
fn drain(machine: &mut RoleMachine, now: u64) -> Vec<Action> {
    std::iter::from_fn(|| machine.poll_action(Monotonic(now))).collect()
}

/// A machine that serves under a lease until 10 s.
fn primary() -> RoleMachine {
    let mut machine = machine();
    machine.handle_lease(ours(10_000));
    assert_eq!(drain(&mut machine, 0), [Action::Prepare { owes: false }]);
    machine.handle_prepared(true, Monotonic(10));
    assert_eq!(drain(&mut machine, 10), [Action::Serve]);
    machine
}

#[test]
fn a_lease_that_has_run_out_is_waited_for_without_asking_again_and_again() {
    let mut machine = machine();
    machine.handle_lease(ours(10_000));
    // As long as the store does not answer, the lease stays ours, and over.
    assert_eq!(drain(&mut machine, 12_000), []);
    assert_eq!(machine.poll_timeout(), None);
    machine.handle_lease(ours(25_000));
    assert_eq!(drain(&mut machine, 15_000), [Action::Prepare { owes: false }]);
    assert_eq!(machine.poll_timeout(), Some(Monotonic(23_000)));
}

#[test]
fn a_replica_becomes_the_primary_after_it_has_stopped_following() {
    let mut machine = machine();
    assert_eq!(drain(&mut machine, 0), []);
    machine.handle_lease(held("a"));
    assert_eq!(drain(&mut machine, 1), [Action::Follow("a".to_owned())]);
    assert_eq!(machine.role(), Role::Replica);
    machine.handle_lease(ours(20_000));
    assert_eq!(drain(&mut machine, 10_000), [Action::Unfollow]);
    assert_eq!(drain(&mut machine, 10_001), [], "it waits until nothing is applied");
    machine.handle_unfollowed();
    assert_eq!(drain(&mut machine, 10_002), [Action::Prepare { owes: false }]);
    machine.handle_prepared(true, Monotonic(10_100));
    assert_eq!(drain(&mut machine, 10_100), [Action::Serve]);
    assert_eq!(machine.role(), Role::Primary);
}

#[test]
fn another_holder_is_followed_at_its_own_address() {
    let mut machine = machine();
    machine.handle_lease(held("a"));
    drain(&mut machine, 0);
    machine.handle_lease(View::Vacant);
    assert_eq!(drain(&mut machine, 1), [], "whoever was followed may come back");
    machine.handle_lease(held("b"));
    assert_eq!(drain(&mut machine, 2), [Action::Unfollow]);
    machine.handle_unfollowed();
    assert_eq!(drain(&mut machine, 3), [Action::Follow("b".to_owned())]);
}

#[test]
fn the_application_is_told_before_the_lease_ends() {
    let mut machine = primary();
    assert_eq!(machine.poll_timeout(), Some(Monotonic(8_000)));
    assert_eq!(drain(&mut machine, 7_999), []);
    machine.handle_lease(ours(13_000));
    assert_eq!(drain(&mut machine, 8_000), [], "it was renewed");
    assert_eq!(drain(&mut machine, 11_000), [Action::StopApplication(Why::Lapsing)]);
    machine.handle_application_stopped(Monotonic(12_000));
    assert_eq!(drain(&mut machine, 12_000), [Action::StopCapture { drain: true }]);
    assert_eq!(drain(&mut machine, 13_000), [Action::StopCapture { drain: false }], "the right is over");
    machine.handle_capture_stopped(false, false, Monotonic(13_010));
    machine.handle_lease(held("b"));
    assert_eq!(drain(&mut machine, 13_010), [Action::Follow("b".to_owned())]);
}

#[test]
fn one_that_was_frozen_finds_its_application_ended_and_follows() {
    let mut machine = primary();
    machine.handle_application_expired(Monotonic(60_000));
    assert_eq!(drain(&mut machine, 60_000), [Action::StopCapture { drain: false }]);
    machine.handle_lease(held("b"));
    assert_eq!(drain(&mut machine, 60_001), []);
    machine.handle_capture_stopped(false, false, Monotonic(60_002));
    assert_eq!(drain(&mut machine, 60_002), [Action::Follow("b".to_owned())]);
}

#[test]
fn a_lease_that_came_back_is_prepared_for_again() {
    let mut machine = primary();
    assert_eq!(drain(&mut machine, 8_000), [Action::StopApplication(Why::Lapsing)]);
    machine.handle_lease(ours(18_000));
    machine.handle_application_stopped(Monotonic(8_500));
    assert_eq!(drain(&mut machine, 8_500), [Action::StopCapture { drain: true }]);
    machine.handle_capture_stopped(true, true, Monotonic(8_600));
    assert_eq!(drain(&mut machine, 8_600), [Action::Prepare { owes: true }]);
}

#[test]
fn a_stop_drains_and_gives_the_lease_up() {
    let mut machine = primary();
    machine.stop();
    assert_eq!(drain(&mut machine, 100), [Action::StopApplication(Why::Stop)]);
    machine.handle_application_stopped(Monotonic(200));
    assert_eq!(drain(&mut machine, 200), [Action::StopCapture { drain: true }]);
    machine.handle_capture_stopped(true, true, Monotonic(300));
    assert_eq!(drain(&mut machine, 300), [Action::Release { is_quiet: true }]);
    machine.handle_lease(View::Ended);
    assert_eq!(drain(&mut machine, 310), [Action::End]);
    assert_eq!(machine.role(), Role::Stopped);
}

#[test]
fn what_is_not_durable_keeps_the_lease_from_being_given_up() {
    let mut machine = primary();
    machine.stop();
    drain(&mut machine, 100);
    machine.handle_application_stopped(Monotonic(200));
    drain(&mut machine, 200);
    machine.handle_capture_stopped(false, false, Monotonic(300));
    assert_eq!(drain(&mut machine, 300), [Action::End]);
}

#[test]
fn who_hands_on_does_not_take_the_lease_again_for_a_while() {
    let mut machine = primary();
    assert!(machine.hand_on());
    assert_eq!(drain(&mut machine, 100), [Action::StopApplication(Why::Handoff)]);
    assert!(!machine.hand_on(), "it is no primary any more");
    machine.handle_application_stopped(Monotonic(200));
    drain(&mut machine, 200);
    machine.handle_capture_stopped(true, true, Monotonic(300));
    assert_eq!(drain(&mut machine, 300), [Action::Release { is_quiet: true }]);
    machine.handle_lease(View::Ended);
    assert_eq!(drain(&mut machine, 310), [Action::Watch]);
    assert_eq!(machine.poll_timeout(), Some(Monotonic(10_310)));
    let mut alone = machine.clone();
    machine.handle_lease(held("b"));
    assert_eq!(drain(&mut machine, 400), [Action::Compete, Action::Follow("b".to_owned())], "another has had it");
    assert_eq!(drain(&mut machine, 10_310), []);
    assert_eq!(machine.poll_timeout(), None);
    alone.handle_lease(View::Vacant);
    assert_eq!((drain(&mut alone, 10_309), drain(&mut alone, 10_310)), (vec![], vec![Action::Compete]));
}

/// A primary that has handed its role on, and looks at the lease.
fn handed_on() -> RoleMachine {
    let mut machine = primary();
    assert!(machine.hand_on());
    drain(&mut machine, 100);
    machine.handle_application_stopped(Monotonic(200));
    drain(&mut machine, 200);
    machine.handle_capture_stopped(true, true, Monotonic(300));
    drain(&mut machine, 300);
    machine.handle_lease(View::Ended);
    assert_eq!(drain(&mut machine, 310), [Action::Watch]);
    machine
}

#[test]
fn who_abstains_takes_what_is_given_up_for_it() {
    for offered in [true, false] {
        let mut machine = handed_on();
        machine.handle_lease(if offered { View::Offered } else { View::Vacant });
        assert_eq!(drain(&mut machine, 400), if offered { vec![Action::Compete] } else { vec![] });
    }
}

#[test]
fn who_is_not_sure_that_nothing_comes_any_more_says_so() {
    let mut machine = primary();
    machine.stop();
    drain(&mut machine, 100);
    machine.handle_application_stopped(Monotonic(200));
    drain(&mut machine, 200);
    machine.handle_capture_stopped(true, false, Monotonic(300));
    assert_eq!(drain(&mut machine, 300), [Action::Release { is_quiet: false }]);
    // It is given up as well when the end comes later, for everything is durable.
    let mut machine = primary();
    machine.handle_application_expired(Monotonic(50));
    drain(&mut machine, 50);
    machine.handle_capture_stopped(true, false, Monotonic(60));
    machine.stop();
    assert_eq!(drain(&mut machine, 70), [Action::Release { is_quiet: false }]);
    // Another taking that has the same number, as whoever looks anew counts anew, is another right.
    let mut machine = handed_on();
    machine.handle_lease(ours(90_000));
    assert_eq!(drain(&mut machine, 20_000), [Action::Compete, Action::Prepare { owes: false }]);
    // Under a right under which databases were served before they are fenced, whatever is known.
    let mut machine = primary();
    machine.handle_application_expired(Monotonic(50));
    drain(&mut machine, 50);
    machine.handle_capture_stopped(true, true, Monotonic(60));
    assert_eq!(drain(&mut machine, 2_000), [Action::Prepare { owes: true }]);
}

#[test]
fn the_end_of_the_application_is_the_end_of_the_node() {
    let mut machine = primary();
    machine.handle_application_ended(Monotonic(50));
    assert_eq!(drain(&mut machine, 50), [Action::StopCapture { drain: true }]);
    machine.handle_capture_stopped(true, true, Monotonic(60));
    assert_eq!(drain(&mut machine, 60), [Action::Release { is_quiet: true }]);
}

#[test]
fn a_lease_that_is_lost_while_databases_are_prepared_ends_that() {
    let mut machine = machine();
    machine.handle_lease(ours(10_000));
    drain(&mut machine, 0);
    machine.handle_lease(held("b"));
    assert_eq!(drain(&mut machine, 1), [Action::CancelPrepare]);
    assert_eq!(drain(&mut machine, 2), []);
    machine.handle_prepared(true, Monotonic(3));
    assert_eq!(drain(&mut machine, 3), []);
    assert_eq!(machine.poll_timeout(), Some(Monotonic(1_003)));
    assert_eq!(drain(&mut machine, 1_003), [Action::Follow("b".to_owned())]);
}

/// A driver that does what it is told, late.
#[derive(Default)]
struct Driver {
    following: bool,
    unfollowing: bool,
    preparing: bool,
    capturing: bool,
    stopping_capture: bool,
    application: bool,
    stopping_application: bool,
    until: u64,
    served: u32,
    ended: bool,
}

impl Driver {
    fn act(&mut self, action: Action, now: u64) {
        match action {
            Action::Follow(_) => {
                assert!(!self.following && !self.preparing && !self.capturing, "follows beside something else");
                self.following = true;
            }
            Action::Unfollow => self.unfollowing = self.following,
            Action::Prepare { .. } => {
                assert!(!self.following && !self.preparing && !self.capturing, "prepares beside something else");
                self.preparing = true;
            }
            Action::CancelPrepare => assert!(self.preparing),
            Action::Serve => {
                assert!(!self.preparing && !self.following && now < self.until, "serves without a right");
                (self.capturing, self.application) = (true, true);
                self.served += 1;
            }
            Action::StopApplication(_) => self.stopping_application = true,
            Action::StopCapture { .. } => {
                assert!(!self.application, "capture ends before the application");
                self.stopping_capture = true;
            }
            Action::Release { .. } => assert!(!self.application && !self.capturing, "gives up what it uses"),
            Action::Watch | Action::Compete => {}
            Action::End => self.ended = true,
        }
    }

    /// Something that was begun ends, perhaps.
    fn answer(&mut self, machine: &mut RoleMachine, now: u64, chance: u64) {
        let at = Monotonic(now);
        match chance % 4 {
            0 if self.unfollowing => {
                (self.following, self.unfollowing) = (false, false);
                machine.handle_unfollowed();
            }
            1 if self.preparing => {
                self.preparing = false;
                machine.handle_prepared(chance & 64 == 0, at);
            }
            2 if self.stopping_application => {
                (self.application, self.stopping_application) = (false, false);
                machine.handle_application_stopped(at);
            }
            3 if self.stopping_capture => {
                (self.capturing, self.stopping_capture) = (false, false);
                machine.handle_capture_stopped(chance & 64 == 0, chance & 64 == 0, at);
            }
            _ => {}
        }
        // The guard.
        if self.application && now >= self.until {
            (self.application, self.stopping_application) = (false, false);
            machine.handle_application_expired(at);
        }
    }
}

#[test]
fn whatever_happens_when_the_invariants_hold() {
    let mut served = 0;
    for seed in 1..2_000_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut chance = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut machine, mut driver, mut now) = (machine(), Driver::default(), 0);
        for step in 0..400 {
            now += chance() % 1_500;
            match chance() % 12 {
                0..=3 => {
                    driver.until = now + chance() % 10_000;
                    machine.handle_lease(ours(driver.until));
                }
                4 => machine.handle_lease(held("b")),
                5 => machine.handle_lease(if machine.stage == Stage::Releasing { View::Ended } else { View::Vacant }),
                6 if chance() % 8 == 0 => drop(machine.hand_on()),
                7 if step > 350 => machine.stop(),
                _ => driver.answer(&mut machine, now, chance()),
            }
            if driver.application && now >= driver.until {
                driver.answer(&mut machine, now, 0);
            }
            while let Some(action) = machine.poll_action(Monotonic(now)) {
                driver.act(action, now);
            }
            assert_eq!(machine.is_capturing(), driver.capturing, "seed {seed} step {step}");
            if driver.ended {
                break;
            }
        }
        served += driver.served;
    }
    assert!(served > 1_000, "hardly anything happened: {served}");
}

/// Somebody else may have had the lease in between, and what is here is older than what that one wrote.
#[test]
fn a_right_that_was_lost_is_not_taken_up_where_it_was_left() {
    let again = View::Ours { epoch: Epoch::FIRST.next().next(), until: Monotonic(90_000), tenure: 2 };
    for between in [Some(held("b")), Some(View::Vacant), None] {
        let mut machine = primary();
        machine.handle_lease(ours(30_000));
        between.into_iter().for_each(|view| machine.handle_lease(view));
        machine.handle_lease(again.clone());
        assert!(machine.has_lost());
        assert_eq!(drain(&mut machine, 20), [Action::StopApplication(Why::Lapsing)]);
        machine.handle_application_stopped(Monotonic(21));
        assert_eq!(drain(&mut machine, 21), [Action::StopCapture { drain: false }], "nothing of it may be written");
        machine.handle_capture_stopped(false, false, Monotonic(22));
        assert!(!machine.has_lost());
        assert_eq!(drain(&mut machine, 22), [Action::Prepare { owes: true }], "it begins anew");
        machine.handle_lease(View::Ours { epoch: Epoch::FIRST, until: Monotonic(90_000), tenure: 3 });
        assert_eq!(drain(&mut machine, 23), [Action::CancelPrepare]);
    }
    let mut machine = primary();
    machine.handle_lease(View::Ours { epoch: Epoch::FIRST.next(), until: Monotonic(30_000), tenure: 1 });
    assert_eq!(drain(&mut machine, 20), [], "a higher number of the same right");
    machine.lose();
    assert_eq!(drain(&mut machine, 20), [Action::StopApplication(Why::Lapsing)]);
}

#[test]
fn who_cannot_prepare_lets_others_try() {
    let mut machine = machine();
    machine.handle_lease(ours(900_000));
    assert_eq!(drain(&mut machine, 0), [Action::Prepare { owes: false }]);
    assert_eq!(machine.poll_timeout(), Some(Monotonic(120_000)));
    assert_eq!(drain(&mut machine, 119_999), []);
    assert_eq!(drain(&mut machine, 120_000), [Action::CancelPrepare]);
    machine.handle_prepared(false, Monotonic(120_001));
    assert_eq!(drain(&mut machine, 120_001), [Action::Release { is_quiet: false }]);
    machine.handle_lease(View::Ended);
    assert_eq!(drain(&mut machine, 120_002), [Action::Watch]);
    assert_eq!(drain(&mut machine, 130_002), [Action::Compete], "and tries again itself");
    machine.handle_lease(ours(900_000));
    assert_eq!(drain(&mut machine, 130_003), [Action::Prepare { owes: false }]);
    assert!(machine.hand_on(), "it can be told to");
    assert_eq!(drain(&mut machine, 130_004), [Action::CancelPrepare]);
    machine.handle_prepared(true, Monotonic(130_005));
    assert_eq!(drain(&mut machine, 130_005), [Action::Release { is_quiet: false }]);
}

#[test]
fn a_lease_is_not_given_up_over_what_is_not_durable() {
    let mut machine = primary();
    machine.handle_lease(held("b"));
    drain(&mut machine, 20);
    machine.handle_application_stopped(Monotonic(21));
    drain(&mut machine, 21);
    machine.handle_capture_stopped(false, false, Monotonic(22));
    machine.stop();
    assert_eq!(drain(&mut machine, 23), [Action::End], "its requests may still come in");
}

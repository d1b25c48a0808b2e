//! What a seed stands for: who takes part, under which terms, and how bad the weather is.

use std::time::Duration;

use rhyolite_logic::history_plan::Policy;
use rhyolite_logic::lease::Guards;

use crate::cluster::rules::ClusterRules;
use crate::random::Random;

/// Microseconds in a millisecond.
pub const MS: u64 = 1000;
/// Microseconds in a second.
pub const SECOND: u64 = 1_000_000;

/// What goes wrong most. Rare things meet only where one of them is not rare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// A little of everything.
    Mixed,
    /// Answers take their time, and then the network goes.
    Slow,
    /// Processes freeze as they send requests.
    Freezing,
    /// Requests come late, and who has sent them dies.
    Deadly,
    /// An operator puts old manifests back.
    Meddled,
    /// As [`Self::Freezing`], with writers that send a segment before the one before it was answered. Only tests ask for it.
    Ahead,
}

/// How often things go wrong: shares of a thousand requests, and mean times between events.
#[derive(Clone, Debug)]
pub struct Weather {
    /// A request never arrives.
    pub lost: u64,
    /// It is done, and the answer never arrives.
    pub answer_lost: u64,
    /// It is done after the caller was told that nobody knows.
    pub late: u64,
    /// It is done a second time, some time later.
    pub twice: u64,
    /// It is done, or answered, slowly.
    pub slow: u64,
    /// Slow ones take any time up to five seconds, not mostly little.
    pub slow_evenly: bool,
    /// The process freezes as it sends a request.
    pub freezes: u64,
    /// The process dies soon after a request that is late or lost.
    pub dies: u64,
    /// The network goes soon after a slow answer has left, or a request was lost.
    pub cuts: u64,
    /// Of those events, how many are an operator's, where there is one.
    pub put_backs: u64,
    /// Mean time between two events of the director, in microseconds.
    pub events: u64,
}

impl Weather {
    fn new(mood: Mood, random: &mut Random) -> Self {
        let bad = [0, 4, 12, 40][random.below(4) as usize];
        let mixed = Self {
            lost: bad,
            answer_lost: bad,
            late: bad,
            twice: bad,
            slow: [5, 20, 60][random.below(3) as usize],
            freezes: [0, 2, 6][random.below(3) as usize],
            dies: [0, 200, 500][random.below(3) as usize],
            cuts: [0, 200, 500][random.below(3) as usize],
            slow_evenly: false,
            put_backs: 100,
            events: random.between(1, 6) * SECOND,
        };
        match mood {
            Mood::Mixed => mixed,
            Mood::Slow => {
                Self { lost: 80, slow: 200, slow_evenly: true, dies: 0, cuts: 400, events: 6 * SECOND, ..mixed }
            }
            Mood::Freezing | Mood::Ahead => Self { freezes: 20, events: 4 * SECOND, ..mixed },
            Mood::Deadly => Self { lost: 30, late: 60, dies: 500, events: 4 * SECOND, ..mixed },
            Mood::Meddled => Self { freezes: 10, put_backs: 600, events: 2 * SECOND, ..mixed },
        }
    }
}

/// All that is decided before the first moment.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// Rules in force.
    pub guards: Guards,
    /// How many nodes want to write.
    pub nodes: usize,
    /// Time to live of the lease.
    pub ttl: Duration,
    /// One database under all nodes (two processes on one machine), or one each (replicas).
    pub shared_database: bool,
    /// Somebody puts older manifests back.
    pub operator: bool,
    /// Writers send a segment before the one before it was answered.
    pub runs_ahead: bool,
    /// Whether wall clocks jump.
    pub wall_jumps: bool,
    /// The weather until `calm`.
    pub weather: Weather,
    /// From here on nothing goes wrong any more, in microseconds.
    pub calm: u64,
    /// The end.
    pub end: u64,
    /// When to do what with the history.
    pub policy: Policy,
    /// The nodes form a cluster.
    pub cluster: Option<Cluster>,
}

/// What a world has in which nodes form a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Rules in force.
    pub rules: ClusterRules,
    /// The history is looked after.
    pub has_upkeep: bool,
    /// The application commits no more from here on, in microseconds.
    pub quiet: u64,
    /// Replicas write, through the primary.
    pub forwards: bool,
    /// How often the application commits, in microseconds.
    pub commits: u64,
    /// How long an application that was told to stop may take, in microseconds.
    pub stop_timeout: u64,
    /// How often what was captured is sent to the store, of a thousand looks at it: the rarer, the more is told to be safe that is not durable.
    pub seals: u64,
    /// A commit is told to be safe when so many other nodes have it; 0: only when it is durable, and nobody is told.
    pub witnesses: u32,
    /// The only machine that loses power; `None`: any of them. A primary and those that have its commits may lose what proves them together, and then nobody
    /// can go on without an operator.
    pub frail: Option<usize>,
}

impl Cluster {
    /// Clients are told that commits are safe before they are durable.
    pub fn has_witnesses(&self) -> bool {
        self.witnesses > 0
    }
}

impl Scenario {
    /// The scenario of `seed`.
    pub fn new(seed: u64, guards: Guards) -> Self {
        let moods = [Mood::Mixed, Mood::Slow, Mood::Freezing, Mood::Deadly, Mood::Meddled];
        Self::of_mood(seed, guards, moods[(seed % moods.len() as u64) as usize])
    }

    /// The scenario of `seed` in this mood.
    pub fn of_mood(seed: u64, guards: Guards, mood: Mood) -> Self {
        let mut random = Random::fork(seed, 1);
        let ttl_ms = [2000, 3000, 5000, 8000][random.below(4) as usize];
        let weather = Weather::new(mood, &mut random);
        let calm = random.between(15, 45) * SECOND;
        let mut policy = policy(&mut random);
        if mood == Mood::Freezing {
            // While a process is frozen, everything that it knew may be gone.
            policy.bundle_interval = Duration::from_secs(1);
            policy.grace = Duration::from_secs(1);
        }
        Self {
            seed,
            guards,
            nodes: random.between(2, 3) as usize,
            ttl: Duration::from_millis(ttl_ms),
            shared_database: random.permille(400),
            runs_ahead: mood == Mood::Ahead,
            operator: mood == Mood::Meddled || (random.permille(100) && mood != Mood::Ahead),
            wall_jumps: random.permille(300),
            weather,
            calm,
            end: calm + 4 * ttl_ms * MS + 10 * SECOND,
            policy,
            cluster: None,
        }
    }

    /// The cluster of `seed`.
    pub fn cluster(seed: u64, rules: ClusterRules) -> Self {
        let moods = [Mood::Mixed, Mood::Slow, Mood::Freezing, Mood::Deadly];
        Self::cluster_of_mood(seed, rules, moods[(seed % moods.len() as u64) as usize])
    }

    /// The cluster of `seed`, with clients that write through replicas.
    pub fn forwarding_cluster(seed: u64, rules: ClusterRules) -> Self {
        let whole = Self::cluster(seed, rules);
        Self { cluster: whole.cluster.map(|cluster| Cluster { forwards: true, ..cluster }), ..whole }
    }

    /// The cluster of `seed` in this mood.
    pub fn cluster_of_mood(seed: u64, rules: ClusterRules, mood: Mood) -> Self {
        let alone = Self::of_mood(seed, rules.lease, mood);
        let mut random = Random::fork(seed, 5);
        let ttl = u64::try_from(alone.ttl.as_micros()).expect("short");
        let quiet = alone.calm + 5 * ttl + 10 * SECOND;
        let cluster = Cluster {
            rules,
            has_upkeep: random.permille(600),
            quiet,
            forwards: false,
            commits: random.between(50, 800) * MS,
            stop_timeout: random.between(200, 2000) * MS,
            seals: 600,
            witnesses: 0,
            frail: None,
        };
        let (nodes, witnesses) = durability(seed, alone.nodes);
        let cluster = Cluster { witnesses, ..cluster };
        let frail = cluster.has_witnesses().then(|| random.below(nodes as u64) as usize);
        let seals = if cluster.has_witnesses() { [600, 50, 10][random.below(3) as usize] } else { cluster.seals };
        let cluster = Cluster { frail, seals, ..cluster };
        let calm = alone.calm;
        let end = quiet + 10 * SECOND;
        Self { nodes, shared_database: false, operator: false, cluster: Some(cluster), calm, end, ..alone }
    }
}

/// How many nodes there are, and on how many of the others a commit has to be to be told safe: half of the clusters wait for the store.
fn durability(seed: u64, nodes: usize) -> (usize, u32) {
    match seed % 10 {
        3 | 4 | 5 | 6 | 8 => (nodes, 0),
        _ if Random::fork(seed, 6).below(5) > 0 => (nodes, 1),
        _ => (5, 2),
    }
}

/// Intervals that let everything happen within a minute.
fn policy(random: &mut Random) -> Policy {
    let mut seconds = |low: u64, high: u64| Duration::from_millis(random.between(low * 1000, high * 1000));
    Policy {
        bundle_interval: seconds(1, 3),
        bundle_segments_min: 2,
        bundle_segments_max: 12,
        bundle_bytes_max: 1 << 20,
        bundle_entries_max: 100,
        merge_interval: seconds(2, 5),
        snapshot_interval: seconds(5, 20),
        keep_every_commit: seconds(5, 20),
        keep_hourly: seconds(15, 30),
        keep_daily: seconds(20, 40),
        grace: seconds(1, 5),
    }
}

use super::*;
use Condition::{Blocked, Busy, Starved};

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn running(threads: u32) -> Shares {
    let mut shares = Shares::default();
    shares.change(at(0), Change::Started(threads));
    shares
}

fn near(shares: [f64; 3], wanted: [f64; 3]) {
    let off = shares.iter().zip(wanted).any(|(a, b)| (a - b).abs() > 1e-6);
    assert!(!off, "{shares:?} is not {wanted:?}");
}

fn of(look: &Look, stage: FlowStage) -> [f64; 3] {
    look.shares[stage as usize]
}

#[test]
fn what_goes_on_counts_before_it_has_ended() {
    let mut shares = running(2);
    shares.change(at(2_000), Change::Source(Blocked));
    near(
        of(&shares.look(at(4_000)), FlowStage::Source),
        [0.5, 0.0, 0.5],
    );
    let look = shares.look(at(62_000));
    near(of(&look, FlowStage::Source), [0.0, 0.0, 1.0]);
    let [busy, starved, blocked] = look.spent[FlowStage::Source as usize].0;
    assert_eq!((busy, starved, blocked), (at(2_000), at(0), at(60_000)));
    // To look changes nothing.
    assert_eq!(shares.look(at(62_000)), look);
    shares.change(at(62_000), Change::Source(Busy));
    near(
        of(&shares.look(at(67_000)), FlowStage::Source),
        [0.5, 0.0, 0.5],
    );
    near(
        of(&shares.look(at(72_500)), FlowStage::Source),
        [1.0, 0.0, 0.0],
    );
}

#[test]
fn the_window_slides_and_each_moment_counts_once() {
    let mut shares = running(1);
    for second in 1..=120 {
        let condition = if second % 2 == 0 { Busy } else { Starved };
        shares.change(at(second * 1_000), Change::Commit(condition));
        let look = shares.look(at(second * 1_000 + 250));
        let [busy, starved, blocked] = of(&look, FlowStage::Commit);
        assert!((busy + starved + blocked - 1.0).abs() < 1e-6);
        if second > 12 {
            assert!((busy - 0.5).abs() < 0.06, "{busy} second={second}");
        }
        let all: Duration = look.spent[FlowStage::Commit as usize].0.iter().sum();
        assert_eq!(all, at(second * 1_000 + 250));
    }
    // A gap that is longer than the window leaves nothing of what was before.
    near(
        of(&shares.look(at(900_000)), FlowStage::Commit),
        [1.0, 0.0, 0.0],
    );
}

#[test]
fn shares_of_batchers_are_means_over_threads() {
    let mut shares = running(4);
    for change in [Change::Handed, Change::Begun, Change::Handed, Change::Begun] {
        shares.change(at(0), change);
    }
    near(
        of(&shares.look(at(1_000)), FlowStage::Batchers),
        [0.5, 0.5, 0.0],
    );
    // One waits although two threads have none: they encode.
    shares.change(at(1_000), Change::Handed);
    near(
        of(&shares.look(at(2_000)), FlowStage::Batchers),
        [0.75, 0.25, 0.0],
    );
    // All are done, nobody takes them, and so the source may not read.
    for change in [Change::Begun, Change::Done, Change::Done, Change::Done] {
        shares.change(at(2_000), change);
    }
    shares.change(at(2_000), Change::Source(Blocked));
    near(
        of(&shares.look(at(4_000)), FlowStage::Batchers),
        [0.375, 0.125, 0.5],
    );
    for _ in 0..3 {
        shares.change(at(4_000), Change::Taken);
    }
    let look = shares.look(at(8_000));
    near(of(&look, FlowStage::Batchers), [0.1875, 0.5625, 0.25]);
}

#[test]
fn rows_that_do_not_leave_the_memory_block_the_writer_and_keep_the_files_busy() {
    let mut shares = running(1);
    shares.change(at(0), Change::Source(Blocked));
    shares.change(at(0), Change::Writer(Busy));
    shares.change(at(0), Change::Writing(true));
    let look = shares.look(at(3_000));
    near(of(&look, FlowStage::Writer), [0.0, 0.0, 1.0]);
    near(of(&look, FlowStage::Files), [1.0, 0.0, 0.0]);
    assert_eq!(look.bottleneck, Some(FlowStage::Files));
    shares.change(at(3_000), Change::Writing(false));
    near(
        of(&shares.look(at(6_000)), FlowStage::Writer),
        [0.5, 0.0, 0.5],
    );
}

#[test]
fn the_bottleneck_is_what_the_others_wait_for() {
    let all = |source, batchers, writer, files, commit| {
        let shares = [source, batchers, writer, files, commit];
        let rest = |[busy, blocked]: [f64; 2]| [busy, 1.0 - busy - blocked, blocked];
        bottleneck(&shares.map(rest)).map(FlowStage::name)
    };
    let idle = [0.01, 0.0];
    assert_eq!(
        all(idle, idle, idle, idle, idle),
        None,
        "a source that is quiet"
    );
    assert_eq!(
        all([0.9, 0.0], [0.5, 0.0], idle, idle, idle),
        Some("source")
    );
    let held = [0.1, 0.9];
    assert_eq!(
        all(held, [0.95, 0.0], [0.2, 0.0], idle, idle),
        Some("batchers")
    );
    assert_eq!(
        all(held, held, [0.97, 0.0], [0.3, 0.0], idle),
        Some("writer")
    );
    assert_eq!(
        all(held, held, [0.2, 0.8], [0.8, 0.0], [0.3, 0.0]),
        Some("files")
    );
    assert_eq!(
        all(held, held, [0.1, 0.9], [0.1, 0.9], [1.0, 0.0]),
        Some("commit")
    );
    // A stall has just begun.
    assert_eq!(
        all([0.3, 0.15], idle, [0.1, 0.2], [0.0, 0.3], [0.35, 0.0]),
        Some("commit")
    );
    // Commits that nobody waits for.
    assert_eq!(all([0.2, 0.0], [0.3, 0.0], idle, idle, [0.8, 0.0]), None);
    // Held up by nothing that works.
    assert_eq!(all([0.1, 0.8], idle, idle, idle, [0.05, 0.0]), None);
}

#[test]
fn a_shard_that_does_not_run_spends_no_time() {
    let mut shares = Shares::default();
    assert_eq!(shares.look(at(5_000)).shares, [[0.0; 3]; STAGES]);
    shares.change(at(5_000), Change::Started(2));
    shares.change(at(6_000), Change::Ended);
    let look = shares.look(at(60_000));
    assert_eq!(look.spent[FlowStage::Commit as usize].0[1], at(1_000));
    assert_eq!(look.shares, [[0.0; 3]; STAGES]);
    assert_eq!(look.bottleneck, None);
    // Counts go on in the next one of this process.
    shares.change(at(60_000), Change::Started(2));
    let look = shares.look(at(61_000));
    assert_eq!(look.spent[FlowStage::Commit as usize].0[1], at(2_000));
}

//! Standard input with the same log.

use super::*;

/// A pipeline that reads its standard input through a log.
fn of_stdin(place: &Place) {
    let text = fs::read_to_string(place.file()).expect("read");
    let (from, to) = (text.find("source:"), text.find("format:"));
    let (from, to) = (from.expect("a source"), to.expect("a format"));
    let source = format!(
        "source: {{ stdin: {{ wal: {{ path: \"{}\", segment_size: 64KiB }} }} }}\n",
        place.dir.join("wal").display()
    );
    let text = format!("{}{source}{}", &text[..from], &text[to..]);
    fs::write(place.file(), text).expect("write");
}

/// calve with this input, of which the end comes when the pipe is dropped.
fn piped(place: &Place, input: &[u8]) -> (Child, ChildStdin) {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(place.dir.join("log"));
    let mut command = Command::new(calve());
    command.arg("run").arg(place.file());
    let command = command.stdin(Stdio::piped()).stderr(log.expect("a log"));
    let mut child = command.spawn().expect("start calve");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(input).expect("write");
    (child, pipe)
}

#[test]
fn standard_input_with_a_log_goes_on_where_its_schema_evolves() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Iceberg, "", FAST);
    of_stdin(&place);
    infer_schema(&place);
    // Behind what is looked at to infer the schema.
    let mut input = events(0, 150_000);
    input.extend(b"{\"id\":150000,\"region\":\"eu\",\"amount\":1.5,\"sku\":\"new\"}\n");
    input.extend(events(150_001, 150_000));
    let (mut child, pipe) = piped(&place, &input);
    drop(pipe);
    assert!(child.wait().expect("wait").success(), "{}", place.log());
    assert!(place.log().contains("evolves"), "{}", place.log());
    let ids = place.ids();
    assert_eq!(ids.len(), 300_001);
    assert!(ids.iter().copied().eq(0..300_001));
}

#[test]
fn standard_input_with_a_log_survives_a_kill() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Iceberg, "", NEVER);
    of_stdin(&place);
    let wal = place.dir.join("wal");
    let logged = || -> u64 {
        let sizes = place.segments().into_iter().map(fs::metadata);
        sizes
            .map(|found| found.map_or(0, |found| found.len()))
            .sum()
    };
    for round in 0..3 {
        let input = events(round * 5000, 5000);
        let before = if round == 0 { 0 } else { logged() };
        let (mut child, _pipe) = piped(&place, &input);
        let appended = (0..1200).find(|_| {
            pause(20);
            wal.exists() && logged() >= before + input.len() as u64
        });
        // Nothing is committed by then.
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(appended.is_some(), "{}", place.log());
    }
    let (mut child, pipe) = piped(&place, &events(15_000, 10));
    drop(pipe);
    assert!(child.wait().expect("wait").success(), "{}", place.log());
    assert_eq!(place.ids(), (0..15_010).collect::<Vec<_>>());
}

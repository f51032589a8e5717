//! The log on the disk: damaged, full.

use super::*;

#[test]
fn a_torn_tail_is_cut_and_damage_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Iceberg, "", NEVER);
    let running = place.start("");
    let mut connection = Client::new(place.port);
    for n in 0..60 {
        let answer = connection
            .post("", &events(n * 100, 100))
            .expect("an answer");
        assert_eq!(answer.status, 200);
    }
    running.kill();
    let segments = place.segments();
    assert!(segments.len() >= 3, "{segments:?}");
    let append = |bytes: &[u8]| {
        let file = fs::File::options()
            .append(true)
            .open(&segments[segments.len() - 1]);
        file.and_then(|mut file| file.write_all(bytes))
            .expect("append");
    };
    let flip = |byte: u8| {
        let mut file = fs::File::options()
            .write(true)
            .open(&segments[1])
            .expect("open");
        file.seek(SeekFrom::Start(5000)).expect("seek");
        file.write_all(&[byte]).expect("write");
    };
    let kept = fs::read(&segments[1]).expect("read")[5000];
    flip(kept ^ 1);
    let mut running = Running::start(&place.dir, &place.file(), "", &[]);
    let ended = (0..600).find_map(|_| {
        pause(50);
        running.ended()
    });
    assert_eq!(ended.expect("it ends").code(), Some(1), "{}", place.log());
    assert!(
        place.log().contains("a record is damaged"),
        "{}",
        place.log()
    );
    flip(kept);
    // What a crash leaves in the middle of a write was not acknowledged.
    append(&[0; 1000]);
    append(b"whatever");
    let running = place.start("");
    assert!(place.log().contains("torn tail"), "{}", place.log());
    let answer = Client::new(place.port).post("", &events(6000, 100));
    assert_eq!(answer.expect("an answer").status, 200);
    // A second process neither takes the log nor disturbs the first one.
    let mut second = Running::start(&place.dir, &place.file(), "", &[]);
    let ended = (0..600).find_map(|_| {
        pause(50);
        second.ended()
    });
    assert_eq!(ended.expect("it ends").code(), Some(2), "{}", place.log());
    assert!(place.log().contains("another process has the log"));
    assert!(running.terminate().success(), "{}", place.log());
    assert_eq!(place.ids(), (0..6100).collect::<Vec<_>>());
    // Without its log the pipeline does not go on.
    fs::remove_dir_all(place.dir.join("wal")).expect("remove");
    let ended = Running::start(&place.dir, &place.file(), "", &[]).wait();
    assert_eq!(ended.code(), Some(2), "{}", place.log());
    assert!(place.log().contains("the log does not hold what follows"));
}

/// Mounts need a namespace of their own: the test runs again inside of one.
#[test]
fn a_full_disk_below_the_log_refuses_requests_until_there_is_room() {
    let root = tempfile::tempdir().expect("a folder");
    let this = thread::current();
    let this = this.name().expect("a test's name");
    let at = this.rfind("a_full_disk").expect("its own name");
    let inside = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().expect("the test's own path"))
        .arg("--exact")
        .arg(format!("{}a_log_within_a_small_file_system", &this[..at]))
        .args(["--ignored", "--nocapture"])
        .env("CALVE_SMALL", root.path())
        .output()
        .expect("unshare (util-linux) makes a mount namespace for this test");
    let said = String::from_utf8_lossy(&inside.stdout);
    let failed = String::from_utf8_lossy(&inside.stderr);
    assert!(
        inside.status.success() && said.contains("1 passed"),
        "{said}{failed}\nthis test needs user namespaces (kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns)"
    );
}

#[test]
#[ignore = "run by a_full_disk_below_the_log_refuses_requests_until_there_is_room, in a mount namespace"]
fn a_log_within_a_small_file_system() {
    let root = std::env::var_os("CALVE_SMALL").expect("set by the test that runs this one");
    let place = Place::new(&Path::new(&root).join("p"), Sink::Iceberg, "", NEVER);
    let wal = place.dir.join("wal");
    fs::create_dir_all(&wal).expect("a folder");
    let mount = |options: &[&str]| {
        let mut mount = Command::new("mount");
        let status = mount.args(options).arg(&wal).status().expect("mount");
        assert!(status.success(), "cannot mount a small file system");
    };
    mount(&["-t", "tmpfs", "-o", "size=512k", "tmpfs"]);
    let running = place.start("");
    let mut client = Client::new(place.port);
    let mut taken = 0;
    let mut post = |events_of: u64| {
        let answer = client.post("", &events(taken, events_of));
        let answer = answer.expect("an answer");
        if answer.status == 200 {
            taken += events_of;
        }
        answer
    };
    let full = (0..1000)
        .map(|_| post(100))
        .find(|answer| answer.status != 200);
    let full = full.expect("the disk is full");
    assert_eq!(full.status, 507, "{full:?}");
    assert!(full.retry_after, "{full:?}");
    let why = full.body["error"].as_str().expect("a reason");
    assert!(why.contains("the log cannot be written"), "{full:?}");
    for _ in 0..20 {
        let again = post(400);
        assert_eq!(again.status, 507, "{again:?}");
    }
    // Smaller ones may still fit behind what was cut off; then those do not, either.
    while post(1).status == 200 {}
    // Killed while it is full: what was answered 200 is there, and nothing else.
    running.kill();
    let running = place.start("");
    let mut client = Client::new(place.port);
    let answer = client.post("", &events(taken, 400)).expect("an answer");
    assert_eq!(answer.status, 507, "{answer:?}");
    mount(&["-o", "remount,size=100m"]);
    for n in 0..50 {
        let first = taken + n * 100;
        let answer = client.post("", &events(first, 100)).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let expected: Vec<u64> = (0..taken + 5000).collect();
    assert!(running.terminate().success(), "{}", place.log());
    assert!(place.ids() == expected, "{}", place.log());
}

//! Files that are followed, and go away.

use std::{fs, io::Write, path::Path};

use calve_e2e::{Running, command, pause, within};

fn append(path: &Path, text: &str) {
    let file = fs::File::options().create(true).append(true).open(path);
    file.expect("open")
        .write_all(text.as_bytes())
        .expect("write");
}

#[test]
fn a_file_that_comes_back_as_another_is_reported_and_its_last_line_counts() {
    let root = tempfile::tempdir().expect("a folder");
    let dir = root.path();
    fs::create_dir(dir.join("in")).expect("a folder");
    let shown = dir.display();
    let text = format!(
        "name: followed\n\
         source: {{ file: {{ path: \"{shown}/in/*.log\", follow: true, poll_interval: 20ms }} }}\n\
         format: {{ json: {{ columns: {{ id: bigint }} }} }}\n\
         sink: {{ iceberg: {{ catalog: {{ sqlite: \"{shown}/lake/catalog.db\", warehouse: \"{shown}/lake\" }}, \
         table: a.b }} }}\n\
         commit: {{ every: 50ms, min_interval: 10ms }}\n\
         rejects: {{ path: \"{shown}/rejects\" }}\n"
    );
    let file = dir.join("p.yaml");
    fs::write(&file, text).expect("the pipeline file");
    let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
    let catalog = dir.join("lake/catalog.db").display().to_string();
    let ids = || {
        let sql = "SELECT id FROM a.b ORDER BY id";
        let done = command(&["query", "--catalog", &catalog, "--format", "csv", sql]);
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let ids = text.lines().filter_map(|line| line.parse().ok());
        ids.collect::<Vec<u64>>()
    };
    let (path, away) = (dir.join("in/a.log"), dir.join("in/a.log.1"));
    append(&path, "{\"id\":1}\n{\"id\":22}\n{\"id\":333}");
    let mut running = Running::start(dir, &file, "", &[]);
    assert!(within(|| ids() == [1, 22]), "{}", log());
    // The last line has no end; that the file is gone was seen when it comes.
    fs::rename(&path, &away).expect("away");
    assert!(within(|| ids() == [1, 22, 333]), "{}", log());
    // The same file goes on.
    append(&away, "\n{\"id\":4444}\n{\"id\":55555}");
    fs::rename(&away, &path).expect("back");
    assert!(within(|| ids() == [1, 22, 333, 4444]), "{}", log());
    // As logs are rotated; the name is free for a look.
    fs::rename(&path, &away).expect("away");
    let all = [1, 22, 333, 4444, 55555];
    assert!(within(|| ids() == all), "{}", log());
    append(&path, "{\"id\":5}\n");
    let mut ended = None;
    for _ in 0..800 {
        pause(25);
        ended = running.ended();
        if ended.is_some() {
            break;
        }
    }
    assert_eq!(ended.and_then(|status| status.code()), Some(2), "{}", log());
    assert!(
        log().contains("file was truncated since it was read"),
        "{}",
        log()
    );
    assert_eq!(ids(), all);
}

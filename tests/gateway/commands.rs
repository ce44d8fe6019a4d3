//! The program itself, as people and scripts run it: what it does, what it prints where, and how it ends.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use switchboard::install::STEPS;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

use crate::harness::{Client, Database, Gateway, get, soon, until};

/// What a command said, and its exit code.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// The program, with nothing of our own environment that it would read, and this database.
pub fn program(url: Option<&str>, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    for (name, _) in std::env::vars_os() {
        if name == "DATABASE_URL" || name.to_string_lossy().starts_with("SWITCHBOARD_") {
            command.env_remove(name);
        }
    }
    if let Some(url) = url {
        command.env("DATABASE_URL", url);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a command to its end.
pub async fn run(mut command: Command) -> Ran {
    let output = soon("the command ends", command.output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs a command with this database.
async fn switchboard(db: &Database, arguments: &[&str]) -> Ran {
    run(program(Some(&db.url), arguments)).await
}

/// The same, with success; what it printed.
async fn done(db: &Database, arguments: &[&str]) -> String {
    let ran = switchboard(db, arguments).await;
    assert_eq!(ran.code, Some(0), "{arguments:?}: {} {}", ran.out, ran.err);
    ran.out
}

/// A gateway in a process of its own.
struct Serving {
    child: Child,
    address: SocketAddr,
    /// The one line on standard output.
    line: String,
    out: BufReader<ChildStdout>,
    err: Arc<Mutex<String>>,
    listening: JoinHandle<()>,
}

/// The same before it accepts connections.
struct Starting {
    child: Child,
    out: BufReader<ChildStdout>,
    err: Arc<Mutex<String>>,
    listening: JoinHandle<()>,
}

impl Starting {
    fn new(mut command: Command) -> Starting {
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let err = Arc::new(Mutex::new(String::new()));
        let listening = tokio::spawn(collect(child.stderr.take().unwrap(), err.clone()));
        Starting { child, out, err, listening }
    }

    /// Waits for a message on standard error.
    async fn says(&self, what: &str) {
        until(what, async || self.err.lock().unwrap().contains(what)).await;
    }

    /// Waits for the line with the addresses.
    async fn serving(self) -> Serving {
        let Starting { child, mut out, err, listening } = self;
        let mut line = String::new();
        soon("the line with the addresses", out.read_line(&mut line)).await.unwrap();
        let address = line.split(['/', ' ']).find_map(|word| word.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}: {}", err.lock().unwrap()));
        Serving { child, address, line, out, err, listening }
    }
}

impl Serving {
    /// Starts it and waits for its line.
    async fn start(command: Command) -> Serving {
        Starting::new(command).serving().await
    }

    /// What it said on standard error so far.
    fn said(&self) -> String {
        self.err.lock().unwrap().clone()
    }

    async fn status(&self, path: &str) -> u16 {
        get(self.address, path).await.0
    }

    async fn ready(&self) {
        until("the gateway is ready", async || self.status("/readyz").await == 200).await;
    }

    async fn subscribe(&self, parameters: &str) -> Client {
        Client::connect(&format!("ws://{}/v1/feed?{parameters}", self.address)).await
    }

    /// Sends a signal.
    async fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.child.id().unwrap());
        assert!(Command::new("/bin/sh").args(["-c", &kill]).status().await.unwrap().success());
    }

    /// Waits for the end: the exit code, and what came on standard output behind the first line.
    async fn ended(mut self) -> (Option<i32>, String) {
        let status = soon("the program ends", self.child.wait()).await.unwrap();
        soon("the end of its messages", self.listening).await.unwrap();
        let mut rest = String::new();
        soon("the end of its output", self.out.read_to_string(&mut rest)).await.unwrap();
        (status.code(), rest)
    }
}

pub async fn collect(mut from: impl AsyncRead + Unpin, to: Arc<Mutex<String>>) {
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        to.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
}

/// A folder for one test, removed with all that is in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("switchboard-{name}-{}", std::process::id()));
        Folder(dir)
    }

    fn file(&self, name: &str, content: &str) -> String {
        std::fs::create_dir_all(&self.0).unwrap();
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A role that may log in and nothing else, and the URL by which it does.
async fn role(db: &Database, kind: &str) -> (String, String) {
    let name = format!("{kind}_{}", db.value::<String>("select current_database()::text").await);
    db.run(&[&format!("create role {name} login password 'secret'")]).await;
    let (_, rest) = db.url.split_once('@').unwrap();
    let url = format!("postgres://{name}:secret@{rest}");
    (name, url)
}

/// The URL of a database where nobody listens. The socket is bound so that nobody else gets its port.
fn closed() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let url = format!("postgres://me:hush@{}/db", socket.local_addr().unwrap());
    (socket, url)
}

#[tokio::test]
async fn install_may_be_repeated() {
    let db = Database::without_log().await;

    let first = done(&db, &["install"]).await;
    let second = done(&db, &["install"]).await;

    let steps: Vec<String> = STEPS.iter().map(|(number, name, _)| format!("{number} ({name})")).collect();
    assert_eq!(first, format!("applied step {}\n", steps.join(", ")));
    assert_eq!(second, format!("installed already, up to step {}\n", STEPS.len()));
}

#[tokio::test]
async fn two_installations_at_once_both_succeed() {
    let db = Database::without_log().await;

    let (one, other) = tokio::join!(done(&db, &["install", "--switch"]), done(&db, &["install", "--switch"]));

    let first = [one, other].iter().filter(|said| said.starts_with("applied")).count();
    assert_eq!(first, 1);
    assert_eq!(db.value::<i64>("select count(*) from switch").await, 4);
}

#[tokio::test]
async fn watch_and_unwatch_begin_and_end_the_capture() {
    let db = Database::without_log().await;
    db.run(&[r#"create table a (id int primary key); create table "Odd" (id int primary key)"#]).await;
    done(&db, &["install"]).await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;

    let watching = done(&db, &["watch", "a", r#""Odd""#]).await;
    db.run(&["insert into a values (1)", r#"insert into "Odd" values (2)"#]).await;
    let unwatched = done(&db, &["unwatch", "a"]).await;
    db.run(&["insert into a values (3)", r#"insert into "Odd" values (4)"#]).await;
    let again = done(&db, &["unwatch", "a"]).await;
    done(&db, &["watch", "a"]).await;
    db.run(&["insert into a values (5)"]).await;

    assert_eq!(watching, "watching a\nwatching \"Odd\"\n");
    assert_eq!(unwatched, "no longer watching a\n");
    assert_eq!(again, "was not watching a\n");
    // What happened to the table while it was not watched cannot be told.
    let mut brought = Vec::new();
    let reset = loop {
        let frame = client.frame().await.unwrap();
        match frame["type"].as_str() {
            Some("reset") => break frame,
            Some("commit") => {}
            _ => continue,
        }
        brought.push((frame["changes"][0]["table"].clone(), frame["changes"][0]["key"]["id"].clone()));
    };
    assert_eq!(reset["reason"], "schema");
    let expected = [("public.a", 1), ("public.Odd", 2), ("public.Odd", 4)].map(|(table, id)| (json!(table), json!(id)));
    assert!(expected.starts_with(&brought), "{brought:?}");
}

#[tokio::test]
async fn watch_says_why_it_cannot_and_what_would_help() {
    let db = Database::without_log().await;
    db.run(&["create view v as select 1 as id; create table p (id int) partition by list (id)"]).await;
    db.run(&["create table p1 partition of p for values in (1)"]).await;

    let early = switchboard(&db, &["watch", "p"]).await;
    done(&db, &["install"]).await;

    assert_eq!((early.code, early.out.as_str()), (Some(1), ""));
    assert!(early.err.contains(r#"run "switchboard install" first"#), "{}", early.err);
    for (table, remedy) in [
        ("nowhere", r#"watching nowhere: relation "nowhere" does not exist"#),
        ("v", "watching v: public.v is not a table (Watch the tables that it reads from.)"),
        ("p1", "watching p1: public.p1 is a partition (Watch the partitioned table that it belongs to.)"),
        ("switchboard.log", "but Switchboard's own; watch tables of your own"),
        ("p,public.p1", "watching public.p1: public.p1 is a partition"),
    ] {
        let ran = switchboard(&db, &["watch", table]).await;
        assert_eq!(ran.code, Some(1), "{table}");
        assert!(ran.err.contains(remedy), "{table}: {}", ran.err);
        assert!(!ran.err.contains("set schema public"), "{table}: {}", ran.err);
    }
    for command in ["watch", "unwatch"] {
        let ran = switchboard(&db, &[command, "p,,v", "\"Odd"]).await;
        assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""), "{command}");
        assert!(ran.err.contains(r#"TABLES: "p,,v" holds an empty name"#), "{}", ran.err);
        assert!(ran.err.contains(r#"TABLES: "\"Odd" has a quote that does not end"#), "{}", ran.err);
        let ran = switchboard(&db, &[command, "switchboard.mark"]).await;
        assert!(ran.err.contains(&format!("Switchboard's own; {command} tables of your own")), "{}", ran.err);
    }
}

/// What a command says when it is pasted into a shell.
async fn pasted(db: &Database, line: &str) -> Ran {
    let mut command = program(Some(&db.url), &[]);
    let folder = Path::new(env!("CARGO_BIN_EXE_switchboard")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", line]).env("PATH", path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in command.as_std_mut().get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    run(shell).await
}

#[tokio::test]
async fn tables_are_listed_with_commas_or_as_arguments_to_every_command() {
    let db = Database::with_switch().await;
    db.run(&[r#"create table a (id int); create table "b,c" (id int); create table d (id int)"#]).await;

    let watching = done(&db, &["watch", "a, \"b,c\"", "public.d"]).await;
    let unwatching = done(&db, &["unwatch", "\"b,c\",a"]).await;

    assert_eq!(watching, "watching a\nwatching \"b,c\"\nwatching public.d\n");
    assert_eq!(unwatching, "no longer watching \"b,c\"\nno longer watching a\n");
}

#[tokio::test]
async fn the_remedy_for_a_name_can_be_pasted_into_a_shell() {
    let db = Database::with_switch().await;
    db.run(&[r#"create schema "My s""#]).await;
    let gateway = Gateway::start(&db).await;

    for (sql, asked, typed) in [
        (r#""User""#, "User", "User"),
        (r#""Odd Name""#, "Odd Name", "Odd Name"),
        (r#"public."o'$(x) ;""""#, r#"public."o'$(x) ;""""#, r#"public."o'$(x) ;""""#),
        (r#""My s"."T""#, "My s.T", "My s.T"),
        (r#"public."a.b.c""#, r#""a.b.c""#, "public.a.b.c"),
        (r#""-v,w""#, r#""-v,w""#, r#""-v,w""#),
    ] {
        db.run(&[&format!("create table {sql} (id int primary key)")]).await;
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("table", asked).finish();

        // What the gateway says, and what the command says if the shell took the quotes.
        let (status, refusal) = gateway.get(&format!("/v1/snapshot?{query}")).await;
        let refusal: serde_json::Value = serde_json::from_str(&refusal).unwrap();
        let message = refusal["error"]["message"].as_str().unwrap();
        let remedy = message.split_once("to watch it: ").unwrap_or_else(|| panic!("{status} {message}")).1;
        let ran = pasted(&db, remedy).await;
        assert_eq!(ran.code, Some(0), "{remedy}: {}", ran.err);
        assert_eq!(gateway.get(&format!("/v1/snapshot?{query}")).await.0, 200, "{remedy}");

        let ran = switchboard(&db, &["unwatch", "--", typed]).await;
        if ran.code != Some(0) {
            let remedy = ran.err.trim_end().rsplit_once(": ").unwrap().1;
            assert!(remedy.starts_with("switchboard unwatch '"), "{}", ran.err);
            assert_eq!(pasted(&db, remedy).await.out, format!("no longer watching {sql}\n"), "{}", ran.err);
        }
    }
    let ran = switchboard(&db, &["watch", "Odd Name"]).await;
    assert!(ran.err.contains(r#"invalid name syntax; a name with blanks"#), "{}", ran.err);
    assert!(ran.err.ends_with("switchboard watch '\"Odd Name\"'\n"), "{}", ran.err);
}

#[tokio::test]
async fn check_says_that_nothing_is_installed() {
    let db = Database::without_log().await;

    let ran = switchboard(&db, &["check"]).await;

    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.out.contains("WRONG  the schema \"switchboard\" is not installed\n       run: switchboard install\n"));
}

#[tokio::test]
async fn check_finds_nothing_wrong_after_install_and_watch() {
    let db = Database::without_log().await;
    done(&db, &["install", "--switch"]).await;

    let out = done(&db, &["check"]).await;

    assert!(out.lines().all(|line| line.starts_with("good ")), "{out}");
    assert!(out.contains("good   public.switch is watched\n"), "{out}");
    assert!(out.contains("good   the doorbell is heard\n"), "{out}");
}

#[tokio::test]
async fn check_finds_a_trigger_that_is_off_or_gone_and_watch_mends_it() {
    // The triggers of our function on a table, for rows and for truncate (the bits 0 and 5 of tgtype).
    let trigger = |bit: u32| {
        format!(
            "select quote_ident(tgname) from pg_trigger where tgrelid = 'switch'::regclass
             and tgfoid = 'switchboard.capture'::regproc and tgtype::int & {bit} <> 0",
        )
    };
    for (bit, harm) in [
        (1, "alter table switch disable trigger TRIGGER"),
        (1, "alter table switch enable replica trigger TRIGGER"),
        (32, "drop trigger TRIGGER on switch"),
    ] {
        let db = Database::with_switch().await;
        let name: String = db.value(&trigger(bit)).await;
        db.run(&[&harm.replace("TRIGGER", &name)]).await;

        let ran = switchboard(&db, &["check"]).await;
        done(&db, &["watch", "public.switch"]).await;
        let mended = done(&db, &["check"]).await;

        assert_eq!(ran.code, Some(1), "{harm}: {}", ran.out);
        let wrong =
            "WRONG  public.switch is watched, but its triggers are missing or disabled: changes are being lost\n";
        assert!(
            ran.out.contains(&format!("{wrong}       run: switchboard watch public.switch\n")),
            "{harm}: {}",
            ran.out
        );
        assert!(mended.contains("good   public.switch is watched\n"), "{harm}: {mended}");
    }
}

#[tokio::test]
async fn check_says_how_large_the_log_is_and_notes_that_nobody_trims_it() {
    let db = Database::with_switch().await;
    db.run(&["insert into switch (name) values ('a')", "insert into switch (name) values ('b')"]).await;
    let gateway = Gateway::start(&db).await;
    until("both have a position", async || gateway.metric("switchboard_log_newest_position").await == 2.0).await;
    gateway.stop().await;

    let small = done(&db, &["check"]).await;
    db.run(&["update switchboard.commit set at = now() - interval '3 days', bytes_end = position * 5e9"]).await;
    let large = done(&db, &["check"]).await;

    let epoch: String = db.value("select name from switchboard.epoch").await;
    assert!(
        small.contains(&format!(
            "good   the log holds 2 commits, after position 0 and up to 2 of epoch {epoch}: 0.0 MB, 0."
        )),
        "{small}"
    );
    assert!(!small.contains("far more"), "{small}");
    assert!(large.contains(": 10.0 GB, 0."), "{large}");
    assert!(large.contains(" MB on disk; the oldest came 25920"), "{large}");
    assert!(large.contains("note   the log holds far more than 86400 s, 1000000 commits or 4.3 GB"), "{large}");
    assert!(large.contains("run: switchboard serve"), "{large}");
}

#[tokio::test]
async fn check_notes_a_table_that_was_dropped() {
    let db = Database::with_switch().await;
    db.run(&["drop table switch"]).await;

    let out = done(&db, &["check"]).await;

    assert!(out.contains("note   public.switch was dropped\n"), "{out}");
}

#[tokio::test]
async fn check_tells_a_role_without_rights_how_it_gets_them() {
    let db = Database::with_switch().await;
    let (name, url) = role(&db, "nobody").await;

    let before = run(program(Some(&url), &["check"])).await;
    done(&db, &["install", "--gateway-role", &name]).await;
    let after = run(program(Some(&url), &["check"])).await;

    assert_eq!(before.code, Some(1), "{}", before.out);
    assert!(before.out.contains(&format!("switchboard install --gateway-role {name}")), "{}", before.out);
    assert_eq!(after.code, Some(0), "{}", after.out);
    assert!(after.out.contains(&format!("good   {name} may run a gateway\n")), "{}", after.out);
}

#[tokio::test]
async fn check_says_that_nobody_answers_at_a_closed_port() {
    let (_socket, url) = closed();

    let ran = run(program(Some(&url), &["check"])).await;

    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.out.starts_with("WRONG  cannot connect: "), "{}", ran.out);
    assert!(ran.out.contains("check the address"), "{}", ran.out);
    assert!(!format!("{}{}", ran.out, ran.err).contains("hush"), "the password shows: {} {}", ran.out, ran.err);
}

#[tokio::test]
async fn a_command_fails_with_1_where_nobody_answers() {
    let (_socket, url) = closed();

    for arguments in [&["install"][..], &["uninstall"], &["watch", "t"], &["unwatch", "t"]] {
        let ran = run(program(Some(&url), arguments)).await;

        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(ran.err.starts_with("switchboard: ") && ran.err.contains("efused"), "{arguments:?}: {}", ran.err);
        assert!(!ran.err.contains("hush"), "{}", ran.err);
    }
}

#[tokio::test]
async fn install_leaves_a_switch_table_of_the_users_own_as_it_is() {
    let db = Database::without_log().await;
    db.run(&["create table switch (name text primary key, volts numeric)", "insert into switch values ('mine', 1.50)"])
        .await;

    let said = done(&db, &["install", "--switch"]).await;

    assert!(said.ends_with("; watching public.switch\n"), "{said}");
    let rows: String = db.value("select json_agg(switch)::text from switch").await;
    assert_eq!(rows, r#"[{"name":"mine","volts":1.50}]"#);
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=switch").await;
    db.run(&["update switch set volts = 2"]).await;
    assert_eq!(client.changes().await[0]["key"], json!({"name": "mine"}));
}

/// Everything that the catalogues hold in this database, in words.
async fn objects(db: &Database) -> BTreeSet<String> {
    let sql = "
        select 'relation ' || oid::regclass || ' ' || coalesce(relacl::text, '') from pg_class
                  where relnamespace <> 'pg_toast'::regnamespace
        union all select 'schema ' || nspname || ' ' || coalesce(nspacl::text, '') from pg_namespace
                  where nspname !~ '^pg_(toast_)?temp_'
        union all select 'function ' || oid::regprocedure || ' ' || coalesce(proacl::text, '') from pg_proc
        union all select 'trigger ' || tgname || ' on ' || tgrelid::regclass from pg_trigger
        union all select 'type ' || oid::regtype from pg_type where typtype <> 'b' or typelem = 0
        union all select 'constraint ' || conname from pg_constraint
        union all select 'event trigger ' || evtname from pg_event_trigger
        union all select 'extension ' || extname from pg_extension
        union all select 'setting ' || setdatabase || setrole || setconfig::text from pg_db_role_setting
        union all select 'default ' || oid from pg_default_acl
        union all select 'database ' || coalesce(datacl::text, '') from pg_database where datname = current_database()";
    db.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn uninstall_leaves_no_trace() {
    let db = Database::without_log().await;
    db.run(&["create table kept (id int primary key, v text)", "create table parts (id int) partition by list (id)"])
        .await;
    db.run(&["create table part_1 partition of parts for values in (1)", "insert into kept values (1, 'a')"]).await;
    let before = objects(&db).await;
    done(&db, &["install"]).await;
    done(&db, &["watch", "kept", "parts"]).await;
    db.run(&["insert into kept values (2, 'b')"]).await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("").await;
    db.run(&["insert into parts values (1)"]).await;
    client.commit().await;
    assert!(objects(&db).await.len() > before.len());
    gateway.stop().await;

    let said = done(&db, &["uninstall"]).await;
    let again = done(&db, &["uninstall"]).await;

    let after = objects(&db).await;
    let strange: Vec<_> = after.symmetric_difference(&before).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert_eq!(said, "removed the schema \"switchboard\" and its triggers; your tables stay as they are\n");
    assert_eq!(again, "there was nothing to remove\n");
    db.run(&[
        "update kept set v = 'c'",
        "insert into parts values (1)",
        "truncate parts",
        "delete from kept where id = 1",
    ])
    .await;
    assert_eq!(db.value::<i64>("select count(*) from kept").await, 1);
}

#[tokio::test]
async fn uninstall_takes_back_what_the_gateways_role_was_granted() {
    let db = Database::without_log().await;
    let (name, _) = role(&db, "leaving").await;
    db.run(&["create schema own; create table own.t (id int primary key)"]).await;
    done(&db, &["install", "--gateway-role", &name]).await;
    done(&db, &["watch", "own.t"]).await;

    done(&db, &["uninstall"]).await;

    db.batch_execute(&format!("drop role {name}")).await.expect("nothing is left that belongs to the role");
}

#[tokio::test]
async fn the_log_may_be_installed_again_after_it_was_removed() {
    let db = Database::with_switch().await;
    done(&db, &["uninstall"]).await;
    done(&db, &["install", "--switch"]).await;
    let gateway = Gateway::start(&db).await;
    let mut client = gateway.follow("table=switch").await;

    db.run(&["update switch set level = 5 where id = 1"]).await;

    assert_eq!(client.changes().await[0]["new"]["level"], 5);
}

#[tokio::test]
async fn the_gateways_role_serves_and_may_do_nothing_else() {
    let db = Database::with_switch().await;
    let (name, url) = role(&db, "gateway").await;
    db.run(&[r#"create schema "Far"; create table "Far".later (id int primary key)"#]).await;
    let said = done(&db, &["install", "--gateway-role", &name]).await;
    done(&db, &["watch", r#""Far".later"#]).await;

    let serving = Serving::start(program(Some(&url), &["serve", "--listen", "127.0.0.1:0"])).await;
    serving.ready().await;
    let mut client = serving.subscribe("").await;
    let (rows, _) = client.snapshot().await;
    db.run(&[r#"insert into "Far".later values (1)"#, "update switch set level = 6 where id = 1"]).await;
    let (later, switch) = (client.changes().await.remove(0), client.changes().await.remove(0));

    assert!(said.ends_with(&format!("; {name} may run a gateway\n")), "{said}");
    assert_eq!(rows.len(), 4);
    assert_eq!(later["table"], "Far.later");
    assert_eq!(switch["new"]["level"], 6);
    let (theirs, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for forbidden in [
        "select * from switchboard.log",
        "select * from switchboard.commit",
        "delete from switchboard.log",
        "update switchboard.commit set nonce = 0",
        "insert into switchboard.watched default values",
        "update switch set level = 0",
        "insert into switch (name) values ('x')",
        "truncate switch",
        "select switchboard.watch('switch')",
        "select switchboard.unwatch('switch')",
        "select switchboard.allow_gateway('postgres')",
        "select nextval('switchboard.serial')",
        "drop schema switchboard cascade",
        "create table switchboard.mine ()",
    ] {
        let code = theirs.batch_execute(forbidden).await.unwrap_err().code().map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), Some("42501"), "{forbidden}");
    }
}

#[tokio::test]
async fn watch_and_check_say_from_which_gateway_row_security_hides_the_rows() {
    let db = Database::with_switch().await;
    let (name, url) = role(&db, "bound").await;
    done(&db, &["install", "--gateway-role", &name]).await;
    db.run(&["create table secret (id int primary key)", "alter table secret enable row level security"]).await;
    let what = format!(
        "row security of public.secret applies to {name}: a gateway of that role tells changes, but gives no snapshots"
    );
    let remedy = format!("run: alter role {name} bypassrls");

    let watched = switchboard(&db, &["watch", "secret"]).await;
    let by_owner = switchboard(&db, &["check"]).await;
    let by_gateway = run(program(Some(&url), &["check"])).await;

    assert_eq!((watched.code, watched.err), (Some(0), format!("switchboard: {what}; {remedy}\n")));
    for ran in [by_owner, by_gateway] {
        assert_eq!(ran.code, Some(1), "{}", ran.out);
        assert!(ran.out.contains(&format!("WRONG  {what}\n       {remedy}\n")), "{}", ran.out);
    }
    db.run(&[&format!("alter role {name} bypassrls")]).await;
    assert_eq!(done(&db, &["check"]).await.matches("row security").count(), 0);
    assert_eq!(switchboard(&db, &["watch", "secret"]).await.err, "");
}

#[tokio::test]
async fn all_wrong_settings_are_reported_at_once() {
    let folder = Folder::new("settings");
    let missing = folder.0.join("missing");
    let arguments = ["serve", "--listen", "8080", "--log", "loud", "--poll-ms", "0", "--readers-max", "many"];
    let mut command = program(None, &arguments);
    command.env("SWITCHBOARD_DATABASE_PASSWORD_FILE", &missing).env("SWITCHBOARD_HEARTBEAT_MS", "-1");

    let ran = run(command).await;

    assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""));
    for mistake in
        ["--listen: \"8080\"", "--log: \"loud\"", "--poll-ms: 0", "--readers-max: \"many\"", "--heartbeat-ms: \"-1\""]
    {
        assert_eq!(ran.err.matches(mistake).count(), 1, "{mistake} in {}", ran.err);
    }
    assert!(ran.err.contains(&format!("--database-password-file: cannot read {}", missing.display())), "{}", ran.err);
    assert!(ran.err.contains("--database-url: no database given; set DATABASE_URL=postgres://"), "{}", ran.err);
    assert_eq!(ran.err.lines().count(), 7, "{}", ran.err);
}

#[tokio::test]
async fn what_the_command_line_does_not_know_ends_with_64_and_silent_output() {
    for arguments in
        [&["serve", "--fast"][..], &["fly"], &[], &["watch"], &["install", "--switch=yes"], &["serve", "extra"]]
    {
        let ran = run(program(Some("postgres://localhost"), arguments)).await;

        assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""), "{arguments:?}");
        assert!(!ran.err.is_empty(), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_wrong_url_is_not_repeated() {
    for (url, part) in [
        ("postgres://me:hush@host:notaport/db", "the port is no number"),
        ("postgresql+asyncpg://me:hush@host/db", "leave \"+asyncpg\" out"),
        ("'postgres://me:hush@host/db'", "quotes around it"),
        ("postgres://me:hu@hush@host/db", "write %40 for it"),
        ("postgres://me:hush@host/db?schema=public", "the parameter schema"),
    ] {
        let ran = run(program(Some(url), &["serve"])).await;

        assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""), "{url}");
        assert!(ran.err.contains(part), "{url}: {}", ran.err);
        assert!(ran.err.contains("postgres://USER:PASSWORD@HOST:PORT/DATABASE"), "{url}: {}", ran.err);
        assert!(!ran.err.contains("hush"), "{url}: {}", ran.err);
    }
}

#[tokio::test]
async fn help_names_every_setting_with_its_variable_and_every_number_with_unit_and_default() {
    for command in ["dev", "serve", "install", "uninstall", "watch", "unwatch", "check"] {
        let mut asking = program(None, &[command, "--help"]);
        asking.env("COLUMNS", "1000").env("SWITCHBOARD_DATABASE_URL", "postgres://me:hush@host/db");
        let ran = run(asking).await;
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{command}");
        assert!(!ran.out.contains("hush"), "{command} shows a password");

        let mut items: Vec<String> = Vec::new();
        // One item per flag, however its text was wrapped.
        for line in ran.out.split("Options:").nth(1).unwrap().lines().map(str::trim) {
            match items.last_mut() {
                Some(item) if !line.starts_with('-') => item.push_str(&format!(" {line}")),
                _ => items.push(line.to_owned()),
            }
        }
        let flag = |item: &String| Some(item.split("--").nth(1)?.split([' ', '=']).next()?.to_owned());
        let flags: Vec<(String, &String)> = items.iter().filter_map(|item| Some((flag(item)?, item))).collect();

        assert!(flags.len() > 2, "{command}: {items:?}");
        for (flag, item) in flags {
            if ["help", "version", "switch", "gateway-role"].contains(&flag.as_str()) {
                continue;
            }
            let variable = format!("[env: SWITCHBOARD_{}", flag.to_uppercase().replace('-', "_"));
            assert!(item.contains(&variable), "{command}: {item}");
            let units = [
                ("-ms", "in milliseconds"),
                ("-seconds", "in seconds"),
                ("bytes-max", "bytes"),
                ("weight-max", "may weigh together"),
                ("-max", "How many"),
            ];
            let unit = units.into_iter().find(|(end, _)| flag.ends_with(end));
            if let Some((_, unit)) = unit {
                assert!(item.contains(unit) && item.contains("[default: "), "{command}: {item}");
            }
        }
    }
    let serve = run(program(None, &["serve", "--help"])).await.out;
    for flag in
        ["--listen", "--database-url", "--database-password-file", "--heartbeat-ms", "--stop-timeout-ms", "--log"]
    {
        assert!(serve.contains(flag), "{flag} in {serve}");
    }
    assert!(serve.contains("127.0.0.1:8080"), "{serve}");
}

#[tokio::test]
async fn serve_prints_one_line_and_ends_with_0_on_sigterm_after_telling_its_clients() {
    let db = Database::with_switch().await;
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--stop-timeout-ms", "5000"];
    let serving = Serving::start(program(Some(&db.url), &arguments)).await;
    let address = serving.address;
    assert_eq!(serving.line, format!("listening on http://{address} ws://{address}/v1/feed\n"));
    serving.ready().await;
    let mut clients = vec![serving.subscribe("").await, serving.subscribe("from=now").await];
    clients.push(Client::connect(&format!("ws://{address}/switch/status")).await);
    for client in &mut clients[..2] {
        client.snapshot().await;
    }
    let begun = Instant::now();

    serving.signal("TERM").await;

    for client in &mut clients {
        assert_eq!(client.closed().await, 1001);
    }
    let said = serving.err.clone();
    assert_eq!(serving.ended().await, (Some(0), String::new()));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(said.lock().unwrap().contains("SIGTERM: stopping"));
}

#[tokio::test]
async fn serve_ends_within_its_bound_though_a_client_does_not_answer() {
    let db = Database::with_switch().await;
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--stop-timeout-ms", "200"];
    let serving = Serving::start(program(Some(&db.url), &arguments)).await;
    serving.ready().await;
    let mut silent = serving.subscribe("from=now").await;
    silent.ready().await;
    let half = TcpStream::connect(serving.address).await.unwrap();
    let begun = Instant::now();

    serving.signal("TERM").await;

    // The clients are there, and neither reads nor writes.
    assert_eq!(serving.ended().await.0, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop((silent, half));
}

#[tokio::test]
async fn serve_fails_with_1_where_its_address_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();

    let ran = run(program(Some("postgres://localhost"), &["serve", "--listen", &address])).await;

    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains(&format!("cannot listen on {address}; give another --listen")), "{}", ran.err);
}

#[tokio::test]
async fn serve_is_alive_without_postgresql_says_so_once_and_is_ready_when_it_comes() {
    let db = Database::without_log().await;
    let name = format!("{}_late", db.value::<String>("select current_database()::text").await);
    let url = format!("{}/{name}", db.url.rsplit_once('/').unwrap().0);
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--log", "debug"];
    let serving = Serving::start(program(Some(&url), &arguments)).await;

    until("it has tried again", async || serving.said().contains("(attempt 4)")).await;
    let (alive, ready, page) =
        (serving.status("/healthz").await, serving.status("/readyz").await, serving.status("/").await);
    let lost: Vec<String> = serving.said().lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect();
    db.run(&[&format!("create database {name}")]).await;
    let installed = run(program(Some(&url), &["install", "--switch"])).await;
    serving.ready().await;
    let (rows, _) = serving.subscribe("table=switch").await.snapshot().await;

    assert_eq!((alive, ready, page), (200, 503, 200));
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert!(lost[0].contains("no PostgreSQL") && lost[0].contains(&name), "{lost:?}");
    assert_eq!(installed.code, Some(0), "{}", installed.err);
    assert_eq!(rows.len(), 4);
}

#[tokio::test]
async fn serve_installs_first_where_it_is_told_to() {
    let db = Database::without_log().await;
    db.run(&["create table a (id int primary key); create table b (id int primary key)"]).await;

    let serving =
        Serving::start(program(Some(&db.url), &["serve", "--listen", "127.0.0.1:0", "--install", "a, public.b"])).await;
    serving.ready().await;
    let mut client = serving.subscribe("from=now").await;
    client.ready().await;
    db.run(&["insert into b values (1)", "insert into a values (2)"]).await;

    assert_eq!(client.changes().await[0]["table"], "public.b");
    assert_eq!(client.changes().await[0]["table"], "public.a");
}

#[tokio::test]
async fn serve_waits_for_the_database_that_it_is_to_install_into() {
    let db = Database::without_log().await;
    let name = format!("{}_late", db.value::<String>("select current_database()::text").await);
    let url = format!("{}/{name}", db.url.rsplit_once('/').unwrap().0);
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--install", ""];
    let starting = Starting::new(program(Some(&url), &arguments));

    starting.says("trying on").await;
    db.run(&[&format!("create database {name}")]).await;
    let serving = starting.serving().await;
    serving.ready().await;

    assert!(serving.said().contains("applied step 1"), "{}", serving.said());
}

#[tokio::test]
async fn the_password_and_the_url_may_come_from_files() {
    let db = Database::with_switch().await;
    let (name, url) = role(&db, "filed").await;
    done(&db, &["install", "--gateway-role", &name]).await;
    let folder = Folder::new("password");
    let (password, whole) = (folder.file("password", "secret\n"), folder.file("url", &format!("{url}\n")));
    let wrong = folder.file("wrong", "guess");
    let bare = url.replace(":secret", "");

    let by_password = run(program(Some(&bare), &["check", "--database-password-file", &password])).await;
    let by_guess = run(program(Some(&bare), &["check", "--database-password-file", &wrong])).await;
    let by_url = run(program(None, &["check", "--database-url-file", &whole])).await;
    let by_both = run(program(None, &["check", "--database-url-file", &whole, "--database-url", &url])).await;

    assert_eq!(by_password.code, Some(0), "{}", by_password.out);
    assert_eq!(by_guess.code, Some(1), "{}", by_guess.out);
    assert!(by_guess.out.contains("password authentication failed"), "{}", by_guess.out);
    assert_eq!(by_url.code, Some(0), "{}", by_url.out);
    assert_eq!(by_both.code, Some(64), "{}", by_both.err);
}

/// The database's URL in what `dev` prints for people.
fn printed_url(said: &str) -> Option<String> {
    let rest = &said[said.find("DATABASE_URL=")? + "DATABASE_URL=".len()..];
    Some(rest.split_whitespace().next()?.to_owned())
}

/// `dev` in this folder, ready, and the URL of its database.
async fn dev(data: &Path) -> (Serving, String) {
    let serving =
        Serving::start(program(None, &["dev", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"])).await;
    serving.ready().await;
    until("the addresses for people are printed", async || serving.said().contains("Ctrl-C")).await;
    let url = printed_url(&serving.said()).unwrap_or_else(|| panic!("no URL in {}", serving.said()));
    (serving, url)
}

/// A session at a printed URL; none where nobody answers.
async fn session(url: &str) -> Option<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

#[tokio::test]
async fn dev_is_everything_on_one_machine_and_keeps_its_rows() {
    let folder = Folder::new("dev");
    let (serving, url) = dev(&folder.0).await;
    let (address, line) = (serving.address, serving.line.clone());
    let (status, page) = get(address, "/").await;
    let mut client = serving.subscribe("table=switch").await;
    let (rows, _) = client.snapshot().await;

    session(&url).await.unwrap().batch_execute("update switch set level = 42 where id = 1").await.unwrap();
    let change = client.changes().await.remove(0);
    serving.signal("INT").await;
    let closed = client.closed().await;
    let ended = serving.ended().await;
    let stopped = session(&url).await.is_none();
    let (again, url_again) = dev(&folder.0).await;
    let (rows_again, _) = again.subscribe("table=switch").await.snapshot().await;
    again.signal("INT").await;
    let ended_again = again.ended().await;

    assert_eq!(line, format!("listening on http://{address} ws://{address}/v1/feed\n"));
    assert_eq!(status, 200);
    assert!(page.contains("<html") && page.contains("</html>"), "{page:.200}");
    assert!(page.contains(r#"data-dev="yes""#), "{page:.200}");
    assert_eq!(rows.len(), 4);
    assert_eq!(change["new"]["level"], 42);
    assert_eq!(closed, 1001);
    assert_eq!(ended, (Some(0), String::new()));
    assert!(stopped, "PostgreSQL still answers");
    let first = rows_again.iter().find(|row| row["id"] == 1).unwrap();
    assert_eq!((rows_again.len(), &first["level"]), (4, &json!(42)));
    assert_eq!(ended_again.0, Some(0));
    assert!(session(&url_again).await.is_none(), "PostgreSQL still answers");
    assert!(!folder.0.join("data/postmaster.pid").exists());
}

#[tokio::test]
async fn dev_in_a_folder_of_somebody_elses_leaves_it_alone() {
    let folder = Folder::new("others");
    folder.file("letter.txt", "dear");

    let ran = run(program(None, &["dev", "--data", folder.0.to_str().unwrap(), "--listen", "127.0.0.1:0"])).await;

    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains(folder.0.to_str().unwrap()), "{}", ran.err);
    let left: Vec<_> = std::fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["letter.txt"]);
}

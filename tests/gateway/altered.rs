//! Tables that change otherwise than by their rows: whoever follows one holds what is in it afterwards, or is told why not; those who
//! follow others hear nothing of it.

use serde_json::json;

use crate::harness::{Database, Gateway, Held, Mirror, Server, soon, until};

const T: &str = "select * from t";

/// A database with a gateway, on which one thing after another is done to a watched table `t`.
struct Scene {
    db: Database,
    gateway: Gateway,
}

/// Those who follow a table while something is done to it.
struct Followers {
    live: Mirror,
    away: Held,
    selection: String,
    query: String,
    other: Mirror,
}

impl Scene {
    async fn new() -> Scene {
        Scene::on(Database::new().await).await
    }

    /// With a table that nothing is done to.
    async fn on(db: Database) -> Scene {
        db.run(&["create table other (n int generated always as identity primary key)"]).await;
        db.watch("other").await;
        let gateway = Gateway::start(&db).await;
        Scene { db, gateway }
    }

    /// Makes a table `t (id, v)` with some rows, watched.
    async fn make_t(&self) {
        self.db.run(&["drop table if exists t cascade", "create table t (id int primary key, v int)"]).await;
        self.db.run(&["insert into t select n, n * 10 from generate_series(1, 5) as n"]).await;
        self.db.watch("t").await;
    }

    /// One that is connected, one that was and comes back later, and one that follows another table.
    async fn follow(&self, selection: &str, query: &str) -> Followers {
        let away = Mirror::begin(&self.gateway, selection).await.leave();
        let mut live = Mirror::begin(&self.gateway, selection).await;
        live.becomes(&self.db, query).await;
        let other = Mirror::begin(&self.gateway, "table=other").await;
        Followers { live, away, selection: selection.to_owned(), query: query.to_owned(), other }
    }

    /// Does something to `t`: everybody who follows it begins again, and then holds what is in it.
    async fn tells_of(&self, what: &str) {
        self.tells_those_of(what, "table=t", T).await;
    }

    /// The same, for a selection and what it selects.
    async fn tells_those_of(&self, what: &str, selection: &str, query: &str) {
        eprintln!("{selection}: {what}");
        let followers = self.follow(selection, query).await;
        self.db.run(&[what]).await;
        followers.are_told(self).await;
    }

    /// Does something to `t` that is no reason to begin again: nobody does.
    async fn tells_nobody_of(&self, what: &str) {
        let mut followers = self.follow("table=t", T).await;
        self.db.run(&[what]).await;
        self.is_looked_at().await;
        // Every row is told once more: a column that came is in the copies from then on.
        self.db.run(&["insert into t (id) values (1000)", "update t set v = v"]).await;
        followers.live.becomes(&self.db, T).await;
        let mut back = Mirror::resume(&self.gateway, "table=t", &followers.away).await;
        back.becomes(&self.db, T).await;
        assert_eq!((followers.live.resets, back.resets), (vec![], vec![]), "{what}");
        followers.other.hears_only_of(self).await;
        self.db.run(&["delete from t where id = 1000"]).await;
    }

    /// Waits until the gateway has looked at all tables, from now on.
    async fn is_looked_at(&self) {
        self.db.run(&["drop table if exists bait", "create table bait (n int primary key)"]).await;
        self.db.watch("bait").await;
        let mut follower = Mirror::begin(&self.gateway, "table=bait").await;
        self.db.run(&["alter table bait rename column n to m"]).await;
        follower.is_reset().await;
    }
}

impl Followers {
    /// Those who follow the table begin again, and then hold what is in it; the other one hears nothing of it.
    async fn are_told(mut self, scene: &Scene) {
        let (db, gateway) = (&scene.db, &scene.gateway);
        self.live.is_reset().await;
        self.live.becomes(db, &self.query).await;
        let mut back = Mirror::resume(gateway, &self.selection, &self.away).await;
        back.is_reset().await;
        back.becomes(db, &self.query).await;
        // From there on it is an ordinary stream, also for who comes back to it.
        let mut again = Mirror::resume(gateway, &self.selection, &self.live.leave()).await;
        again.until("ready", |mirror| mirror.is_ready()).await;
        again.becomes(db, &self.query).await;
        assert_eq!(again.resets, [""; 0], "whoever began again is not told a second time");
        self.other.hears_only_of(scene).await;
    }
}

impl Mirror {
    /// The next that it hears is the next row of its own table, which is no table that anything was done to.
    async fn hears_only_of(&mut self, scene: &Scene) {
        let before = self.commits;
        scene.db.run(&["insert into other default values"]).await;
        self.becomes(&scene.db, "select * from other").await;
        assert_eq!((self.commits - before, &self.resets), (1, &vec![]), "those who follow another table are troubled");
    }
}

/// Several transactions that follow each other at once, sent together, so that no look of a gateway is likely to come in between.
fn at_once(transactions: &[&str]) -> String {
    transactions.iter().map(|transaction| format!("begin; {transaction}; commit;")).collect()
}

#[tokio::test]
async fn a_table_that_was_unwatched_and_watched_again_is_begun_again() {
    let scene = Scene::new().await;
    scene.make_t().await;
    let [unwatch, write, watch] =
        ["select switchboard.unwatch('t')", "update t set v = v + 1", "select switchboard.watch('t')"];

    scene.tells_of(&at_once(&[&[unwatch, write, watch].join("; ")])).await;
    scene.tells_of(&at_once(&[unwatch, write, watch])).await;
    scene.tells_of(&at_once(&[unwatch, "truncate t", "insert into t values (7, 7)", watch])).await;
}

#[tokio::test]
async fn a_table_that_was_written_while_its_triggers_were_disabled_is_begun_again() {
    let scene = Scene::new().await;
    scene.make_t().await;

    for (which, first) in [("all", 100), ("user", 200), (r#""!{capture}""#, 300)] {
        let capture: String = scene.db.value(CAPTURE).await;
        let which = which.replace("!{capture}", &capture);
        let load = format!("insert into t select n, n from generate_series({first}, {first} + 9) as n");
        let [disable, enable] = ["disable", "enable"].map(|word| format!("alter table t {word} trigger {which}"));
        scene.tells_of(&at_once(&[&[&*disable, &load, &enable].join("; ")])).await;
        scene.tells_of(&at_once(&[&disable, "update t set v = v + 1; delete from t where id = 1", &enable])).await;
    }
}

/// The name of the trigger that captures the rows of `t`.
const CAPTURE: &str =
    "select tgname::text from pg_trigger where tgrelid = 't'::regclass and not tgisinternal and tgtype & 1 = 1";

#[tokio::test]
async fn a_table_whose_triggers_were_dropped_and_made_again_is_begun_again() {
    let scene = Scene::new().await;
    scene.make_t().await;
    let capture: String = scene.db.value(CAPTURE).await;

    let drop = format!(r#"drop trigger "{capture}" on t"#);
    scene.tells_of(&at_once(&[&drop, "delete from t where id = 1", "select switchboard.watch('t')"])).await;
    scene.tells_of(&at_once(&[&format!("{drop}; delete from t where id = 2; select switchboard.watch('t')")])).await;
    // The definition as it was, by hand or by a tool.
    let definition: String = scene
        .db
        .value("select pg_get_triggerdef(oid) from pg_trigger where tgrelid = 't'::regclass and tgtype & 1 = 1")
        .await;
    scene.tells_of(&at_once(&[&drop, "delete from t where id = 3", &definition])).await;
}

#[tokio::test]
async fn what_happened_to_a_table_while_no_gateway_ran_is_told_to_who_comes_back() {
    for what in [
        "alter table t disable trigger user; update t set v = v + 1; alter table t enable trigger user".to_owned(),
        "select switchboard.unwatch('t'); update t set v = v + 1; select switchboard.watch('t')".to_owned(),
        "alter table t drop column v; alter table t add column v int".to_owned(),
        "alter table t alter v type int using v + 1".to_owned(),
        "alter table t add column c int default 5".to_owned(),
    ] {
        let mut scene = Scene::new().await;
        scene.make_t().await;
        let held = Mirror::begin(&scene.gateway, "table=t").await.leave();
        let others = Mirror::begin(&scene.gateway, "table=other").await.leave();
        scene.gateway.stop().await;

        scene.db.run(&[&what]).await;

        scene.gateway = Gateway::start(&scene.db).await;
        let mut back = Mirror::resume(&scene.gateway, "table=t", &held).await;
        back.is_reset().await;
        back.becomes(&scene.db, T).await;
        let mut other = Mirror::resume(&scene.gateway, "table=other", &others).await;
        other.hears_only_of(&scene).await;
    }
}

#[tokio::test]
async fn a_table_whose_trigger_is_left_disabled_ends_in_an_error_that_names_the_remedy() {
    let scene = Scene::new().await;
    for spoil in ["alter table t disable trigger {}", "drop trigger {} on t", "alter table t disable trigger all"] {
        scene.make_t().await;
        let capture: String = scene.db.value(CAPTURE).await;
        let mut live = Mirror::begin(&scene.gateway, "table=t").await;
        let held = Mirror::begin(&scene.gateway, "table=t").await.leave();
        let mut of_all = Mirror::begin(&scene.gateway, "").await;
        scene.db.run(&["insert into other default values"]).await;

        scene.db.run(&[&spoil.replace("{}", &format!(r#""{capture}""#))]).await;

        live.is_reset().await;
        says_what_helps(live, spoil).await;
        // What there is besides goes on.
        of_all.is_reset().await;
        of_all.becomes(&scene.db, "select * from other").await;
        // Whoever comes now is not served rows that nothing will follow.
        says_what_helps(Mirror::resume(&scene.gateway, "table=t", &held).await, spoil).await;
        scene.db.run(&["update t set v = v + 1"]).await;
        scene.db.watch("t").await;
        let mut back = Mirror::resume(&scene.gateway, "table=t", &held).await;
        back.is_reset().await;
        back.becomes(&scene.db, T).await;
        of_all.becomes_all_of(&scene).await;
    }
}

impl Mirror {
    async fn becomes_all_of(&mut self, scene: &Scene) {
        self.is_reset().await;
        self.until("ready", |mirror| mirror.is_ready()).await;
        let rows: i64 = scene.db.value("select (select count(*) from t) + (select count(*) from other)").await;
        assert_eq!(self.len() as i64, rows);
    }
}

async fn says_what_helps(mut follower: Mirror, told: &str) {
    let (error, code) = follower.ends().await;
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("table t") && message.contains("switchboard watch"), "{told}: {message}");
    assert_eq!(code, 4400, "{told}: there is no sense in coming again");
}

#[tokio::test]
async fn those_who_hold_everything_let_go_of_a_table_that_is_not_followed_any_more() {
    let scene = Scene::new().await;
    scene.db.run(&["insert into other default values"]).await;
    for what in [
        "select switchboard.unwatch('t')",
        "drop table t",
        "alter table t disable trigger user",
        "alter table t rename to gone; select switchboard.unwatch('gone')",
    ] {
        scene.make_t().await;
        scene.is_looked_at().await;
        scene.db.run(&["drop table bait"]).await;
        let mut live = Mirror::begin(&scene.gateway, "").await;
        let away = Mirror::begin(&scene.gateway, "").await.leave();

        scene.db.run(&[what]).await;

        live.is_reset().await;
        live.becomes(&scene.db, "select * from other").await;
        let mut back = Mirror::resume(&scene.gateway, "", &away).await;
        back.becomes(&scene.db, "select * from other").await;
    }
}

#[tokio::test]
async fn a_table_that_is_watched_while_everything_is_being_read_is_read_too() {
    let scene = Scene::new().await;
    scene.make_t().await;
    scene.db.run(&["select switchboard.unwatch('t')", "insert into t (id) values (77)"]).await;
    scene.is_looked_at().await;
    scene.db.run(&["drop table bait"]).await;
    let holder = scene.db.session().await;
    holder.batch_execute("begin; lock table other in access exclusive mode").await.unwrap();

    let (mut follower, ()) = tokio::join!(Mirror::begin(&scene.gateway, ""), async {
        until("the reading tries again", async || {
            let tried = "select exists (select from pg_stat_activity
                                        where datname = current_database() and application_name = 'switchboard' and query = 'rollback')";
            scene.db.value(tried).await
        })
        .await;
        scene.db.run(&["select switchboard.watch('t')"]).await;
        holder.batch_execute("rollback").await.unwrap();
    });

    follower.becomes(&scene.db, T).await;
}

#[tokio::test]
async fn a_column_that_was_dropped_and_added_again_is_another_one() {
    let scene = Scene::new().await;
    for (selection, query) in [
        ("table=t", T),
        ("table=t&columns=v", "select id, v from t"),
        ("table=t&where=v.gt.20", "select * from t where v > 20"),
        ("table=t&where=v.is.null&columns=id", "select id from t where v is null"),
    ] {
        scene.make_t().await;
        let [drop, add] = ["alter table t drop column v", "alter table t add column v int"];
        scene.tells_those_of(&at_once(&[drop, add]), selection, query).await;
        scene.db.run(&["update t set v = id * 10"]).await;
        scene.tells_those_of(&at_once(&[&[drop, add].join("; ")]), selection, query).await;
    }
}

#[tokio::test]
async fn columns_that_swap_their_names_are_told() {
    let scene = Scene::new().await;
    let swap = "alter table t rename v to x; alter table t rename w to v; alter table t rename x to w";
    for (selection, query) in [
        ("table=t", T),
        ("table=t&columns=v", "select id, v from t"),
        ("table=t&where=v.gt.20", "select * from t where v > 20"),
    ] {
        scene.make_t().await;
        scene.db.run(&["alter table t add column w int", "update t set w = -id"]).await;
        scene.is_looked_at().await;
        scene.tells_those_of(&at_once(&[swap]), selection, query).await;
        scene.tells_those_of(&at_once(&swap.split("; ").collect::<Vec<_>>()), selection, query).await;
    }
}

#[tokio::test]
async fn tables_that_swap_their_names_are_told() {
    let scene = Scene::new().await;
    scene.make_t().await;
    scene.db.run(&["create table u (id int primary key, v int)", "insert into u values (1, 1), (9, 9)"]).await;
    scene.db.watch("u").await;

    scene
        .tells_of(&at_once(&["alter table t rename to x; alter table u rename to t; alter table x rename to u"]))
        .await;
}

#[tokio::test]
async fn another_table_of_the_same_name_is_another_one() {
    let scene = Scene::new().await;
    for what in [
        "drop table t; create table t (id int primary key, v int); select switchboard.watch('t')",
        "alter table t rename to gone; create table t (id int primary key, v int); select switchboard.watch('t')",
        "create table u (id int primary key, v int); insert into u values (1, 1), (9, 9); select switchboard.watch('u');
         drop table t; alter table u rename to t",
        "create schema aside; create table aside.t (id int constraint aside_pkey primary key, v int); select switchboard.watch('aside.t');
         drop table t; alter table aside.t set schema public",
    ] {
        scene.make_t().await;
        scene.tells_of(&format!("begin; {what}; insert into t values (50, 50); commit")).await;
    }
}

#[tokio::test]
async fn a_column_that_comes_with_values_is_told_and_one_that_is_empty_troubles_nobody() {
    let scene = Scene::new().await;
    scene.db.run(&["create domain seven as int default 7", "create sequence steps"]).await;
    for column in [
        "int default 5",
        "int not null default 5",
        "timestamptz default now()",
        "int default nextval('steps')",
        "int generated always as (id * 2) stored",
        "int generated by default as identity",
        "seven",
    ] {
        scene.make_t().await;
        scene.tells_of(&format!("alter table t add column c {column}")).await;
    }
    scene.make_t().await;
    for (name, column) in
        [("e", "int"), ("f", "text default null"), ("g", "int check (g > 0)"), ("h", "int references t")]
    {
        scene.tells_nobody_of(&format!("alter table t add column {name} {column}")).await;
    }
}

#[tokio::test]
async fn a_column_whose_values_are_made_anew_is_told_though_its_type_is_the_same() {
    let scene = Scene::new().await;
    scene.make_t().await;
    scene.db.run(&["alter table t add column w text", "update t set w = 'abc'"]).await;
    scene.is_looked_at().await;

    scene.tells_of("alter table t alter column w type text using upper(w)").await;
    scene.tells_of("alter table t alter column v type int using v + 1").await;
    scene
        .tells_those_of(
            "alter table t alter v type int using v * 2",
            "table=t&where=v.gt.50",
            "select * from t where v > 50",
        )
        .await;
    scene
        .tells_those_of("alter table t alter v type int using v * 2", "table=t&columns=w", "select id, w from t")
        .await;
}

#[tokio::test]
async fn a_key_that_changes_is_told() {
    let scene = Scene::new().await;
    scene.make_t().await;

    scene.tells_of("alter table t drop constraint t_pkey, alter v set not null, add primary key (v)").await;
    scene.tells_of("alter table t drop constraint t_pkey, add primary key (id, v)").await;
}

#[tokio::test]
async fn what_changes_no_value_troubles_nobody() {
    let scene = Scene::new().await;
    scene.make_t().await;

    for what in [
        "analyze t",
        "vacuum t",
        "create index on t (v)",
        "reindex table t",
        "comment on column t.v is 'a number'",
        "alter table t alter v set statistics 10",
        "alter table t add check (id > 0)",
        "create trigger mine before insert on t for each row when (new.id < 0) execute function suppress_redundant_updates_trigger()",
        "grant select on t to public",
        "alter table t set (fillfactor = 90)",
        "select switchboard.watch('t')",
    ] {
        scene.tells_nobody_of(what).await;
    }
}

#[tokio::test]
async fn a_table_that_is_written_down_anew_with_the_same_values_troubles_nobody() {
    let scene = Scene::new().await;
    scene.make_t().await;

    for what in ["vacuum full t", "cluster t using t_pkey", "alter table t alter v set default 3"] {
        scene.tells_nobody_of(what).await;
    }
}

/// An enum, and a domain over a domain over it.
const MOODS: [&str; 6] = [
    "create type mood as enum ('sad', 'ok')",
    "create domain calm as mood check (value is not null)",
    "create domain deep as calm",
    "create table t (id int primary key, m mood, d deep)",
    "insert into t values (1, 'sad', 'sad'), (2, 'ok', 'ok')",
    "select switchboard.watch('t')",
];

#[tokio::test]
async fn filters_on_an_enum_that_was_altered_work_at_once() {
    let scene = Scene::new().await;
    scene.db.run(&MOODS).await;
    let chosen = async |label: &str, ids: &[i64]| {
        for column in ["m", "d"] {
            // Not one of the readings that others share.
            let own = fastrand::u32(1000..1 << 30);
            let filter = format!("and({column}.eq.{label},id.lt.{own})");
            let mut client = scene.gateway.subscribe(&format!("table=t&where={filter}")).await;
            let (rows, _) = client.snapshot().await;
            let found: Vec<i64> = rows.iter().map(|row| row["id"].as_i64().unwrap()).collect();
            assert_eq!(found, ids, "{column} {label}");
            scene.db.run(&["update t set id = id"]).await;
            if !ids.is_empty() {
                assert_eq!(client.changes().await.len(), ids.len(), "{column} {label}");
            }
        }
    };
    chosen("sad", &[1]).await;

    scene.db.run(&["alter type mood rename to humour"]).await;
    chosen("sad", &[1]).await;
    scene.db.run(&["create schema elsewhere", "alter type humour set schema elsewhere"]).await;
    chosen("ok", &[2]).await;
    scene.db.run(&["alter domain calm rename to still", "alter domain deep set schema elsewhere"]).await;
    chosen("ok", &[2]).await;
    scene.db.run(&["alter type elsewhere.humour add value 'glad' before 'ok'"]).await;
    chosen("glad", &[]).await;
    scene.db.run(&["insert into t values (3, 'glad', 'glad')"]).await;
    chosen("glad", &[3]).await;
    scene.db.run(&["alter type elsewhere.humour rename value 'sad' to 'blue'"]).await;
    chosen("blue", &[1]).await;
}

#[tokio::test]
async fn a_filter_on_an_enum_that_is_altered_meanwhile_judges_as_postgresql_does() {
    let scene = Scene::new().await;
    scene.db.run(&MOODS).await;
    // Both columns hold the same, and an operator of an enum does not see through a domain.
    let query = "select * from t where m > 'sad'";
    let mut follower = Mirror::begin(&scene.gateway, "table=t&where=m.gt.sad&where=d.gt.sad").await;

    for alteration in [
        "alter type mood rename to humour",
        "alter type humour add value 'bad' before 'sad'",
        "alter type humour add value 'good' after 'sad'",
        "create schema elsewhere; alter type humour set schema elsewhere",
    ] {
        scene.db.run(&[alteration]).await;
        for label in ["bad", "good", "ok", "sad"] {
            let write = format!("update t set m = '{label}', d = '{label}'");
            if scene.db.batch_execute(&write).await.is_ok() {
                follower.becomes(&scene.db, query).await;
            }
        }
    }
}

#[tokio::test]
async fn a_label_or_a_field_that_is_renamed_renames_it_in_the_rows_that_clients_hold() {
    let scene = Scene::new().await;
    scene.db.run(&MOODS).await;
    scene.tells_of("alter type mood rename value 'sad' to 'blue'").await;
    scene.db.run(&["drop table t"]).await;

    scene
        .db
        .run(&[
            "create type place as (street text, number int)",
            "create table t (id int primary key, p place, ps place[])",
        ])
        .await;
    scene.db.run(&["insert into t values (1, row('Elm', 5), array[row('Oak', 6)::place])"]).await;
    scene.db.watch("t").await;
    scene.tells_of("alter type place rename attribute street to road").await;
    scene.tells_of("alter type place add attribute city text").await;
    scene.tells_of("alter type place drop attribute number").await;
}

/// Names that mean something to our SQL, or did once, or that somebody might think of for it.
const NAMES: [&str; 22] = [
    "selected",
    "switchboard_row",
    "switchboard",
    "old",
    "new",
    "this",
    "row",
    "rows",
    "t",
    "log",
    "change",
    "watch",
    "op",
    "first",
    "xid",
    "serial",
    "position",
    "key",
    "tg_op",
    "tg_argv",
    "found",
    "value",
];

#[tokio::test]
async fn no_name_of_a_column_or_a_table_means_anything_to_us() {
    let scene = Scene::new().await;
    for table in NAMES {
        let columns: String = NAMES.iter().map(|name| format!(r#", "{name}" int"#)).collect();
        let values: Vec<String> = (1..=NAMES.len()).map(|n| n.to_string()).collect();
        let values = values.join(", ");
        scene.db.run(&[&format!(r#"create table "{table}" (id int primary key{columns})"#)]).await;
        scene.db.run(&[&format!(r#"insert into "{table}" values (1, {values}), (2, {values})"#)]).await;
        scene.db.watch(&format!(r#""{table}""#)).await;
        let mut all = Mirror::begin(&scene.gateway, &format!("table={table}")).await;
        // The same names in every table, so each column is asked for in one of them.
        let column = NAMES[(NAMES.iter().position(|name| *name == table).unwrap() + 7) % NAMES.len()];
        let mut some =
            Mirror::begin(&scene.gateway, &format!("table={table}&columns={column}&where={column}.gt.0")).await;
        let whole = format!(r#"select * from "{table}""#);
        let part = format!(r#"select id, "{column}" from "{table}" where "{column}" > 0"#);
        all.becomes(&scene.db, &whole).await;
        some.becomes(&scene.db, &part).await;

        for name in NAMES {
            scene.db.run(&[&format!(r#"update "{table}" set "{name}" = - "{name}" where id = 1"#)]).await;
        }
        scene.db.run(&[&format!(r#"delete from "{table}" where id = 2"#)]).await;
        scene.db.run(&[&format!(r#"insert into "{table}" values (3, {values})"#)]).await;

        all.becomes(&scene.db, &whole).await;
        some.becomes(&scene.db, &part).await;
        assert_eq!((all.resets, some.resets), (vec![], vec![]));
        let (status, body) = scene.gateway.get(&format!("/v1/snapshot?table={table}&columns={column}")).await;
        assert_eq!(status, 200, "{body}");
    }
}

#[tokio::test]
async fn virtual_generated_columns_are_left_out_everywhere() {
    let scene = Scene::new().await;
    if scene.db.value::<i32>("select current_setting('server_version_num')::int").await < 180_000 {
        return eprintln!("skipped: before PostgreSQL 18 there are none");
    }
    scene
        .db
        .run(&[
            "create table t (id int primary key, v int, twice int generated always as (v * 2) virtual,
                             thrice int generated always as (v * 3) stored)",
            "insert into t (id, v) values (1, 1), (2, 2)",
        ])
        .await;
    scene.db.watch("t").await;
    let query = "select id, v, thrice from t";
    let mut all = Mirror::begin(&scene.gateway, "table=t").await;
    let mut some = Mirror::begin(&scene.gateway, "table=t&where=thrice.gt.3").await;
    all.becomes(&scene.db, query).await;

    scene
        .db
        .run(&["update t set v = v + 1", "insert into t (id, v) values (3, 3)", "delete from t where id = 1"])
        .await;

    all.becomes(&scene.db, query).await;
    some.becomes(&scene.db, "select id, v, thrice from t where thrice > 3").await;
    for refused in ["table=t&where=twice.gt.2", "table=t&columns=twice"] {
        let mut client = scene.gateway.subscribe(refused).await;
        let error = client.next_of("error", &["hello"]).await;
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("twice") && message.contains("virtual"), "{refused}: {message}");
        assert_eq!(client.closed().await, 4400, "{refused}");
    }
    let (_, tables) = scene.gateway.get("/v1/tables").await;
    assert!(!tables.contains("twice"), "{tables}");
    // One that comes or goes changes nothing that anybody holds.
    scene.db.run(&["alter table t drop column twice"]).await;
    scene.is_looked_at().await;
    scene.db.run(&["update t set v = v + 1"]).await;
    all.becomes(&scene.db, query).await;
    assert_eq!(all.resets, Vec::<String>::new());
}

/// A partitioned table `t (id, v)` of three partitions, the last of them partitioned itself, and a table that could be another one.
const PARTITIONED: [&str; 9] = [
    "drop table if exists t, loose, low, high, rest, far cascade",
    "create table t (id int primary key, v int) partition by range (id)",
    "create table low partition of t for values from (0) to (100)",
    "create table high partition of t for values from (100) to (200)",
    "create table rest partition of t for values from (200) to (400) partition by range (id)",
    "create table far partition of rest for values from (200) to (300)",
    "create table loose (id int primary key, v int)",
    "insert into t select n, n from unnest('{1,2,101,102,201,202}'::int[]) as n",
    "insert into loose values (501, 1), (502, 2)",
];

#[tokio::test]
async fn what_happens_to_a_partition_is_told_to_those_who_follow_its_table() {
    let scene = Scene::new().await;
    for what in [
        "truncate low",
        "begin; truncate low; insert into low values (3, 3); commit",
        "begin; insert into low values (4, 4); truncate high; commit",
        "truncate rest",
        "truncate far",
        "alter table t detach partition high",
        "begin; alter table t detach partition high; update high set v = 7; alter table t attach partition high for values from (100) to (200); commit",
        "alter table rest detach partition far",
        "drop table low",
        "drop table far",
        "drop table rest",
        "alter table t attach partition loose for values from (500) to (600)",
        "alter table t attach partition loose default",
        "alter table far disable trigger user; insert into t values (203, 3); alter table far enable trigger user",
    ] {
        scene.db.run(&PARTITIONED).await;
        scene.db.watch("t").await;

        scene.tells_of(what).await;

        // And what is written behind it comes.
        let mut follower = Mirror::begin(&scene.gateway, "table=t").await;
        scene.db.run(&["update t set v = v + 1", "delete from t where id in (2, 102, 202, 502)"]).await;
        follower.becomes(&scene.db, T).await;
        assert_eq!(follower.resets, [""; 0], "{what}");
    }
}

#[tokio::test]
async fn a_truncate_waits_for_nobody_who_works_on_the_books() {
    let scene = Scene::new().await;
    scene.db.run(&PARTITIONED).await;
    scene.db.watch("t").await;
    let other = scene.db.session().await;
    other.batch_execute("begin; select from switchboard.watched for update").await.unwrap();

    soon("the truncate", scene.db.run(&["truncate t"])).await;

    other.batch_execute("rollback").await.unwrap();
    assert_eq!(scene.db.value::<i64>("select count(*) from switchboard.log where op = 'T'").await, 1);
}

#[tokio::test]
async fn a_partition_that_begins_empty_troubles_nobody() {
    let scene = Scene::new().await;
    scene.db.run(&PARTITIONED).await;
    scene.db.watch("t").await;
    let mut follower = Mirror::begin(&scene.gateway, "table=t").await;

    scene.db.run(&["create table next partition of t for values from (1000) to (2000)"]).await;
    scene.is_looked_at().await;
    scene.db.run(&["insert into next values (1000, 1)"]).await;
    follower.becomes(&scene.db, T).await;
    scene.is_looked_at().await;
    scene.db.run(&["insert into t values (1001, 2)"]).await;
    follower.becomes(&scene.db, T).await;

    assert_eq!(follower.resets, [""; 0], "a partition for each day must not cost each client a snapshot a day");
}

#[tokio::test]
async fn a_watched_table_that_becomes_a_partition_of_another_speaks_once_and_under_its_parents_name() {
    let scene = Scene::new().await;
    scene.db.run(&PARTITIONED).await;
    scene.db.watch("t").await;
    scene.db.watch("loose").await;
    let mut of_parent = Mirror::begin(&scene.gateway, "table=t").await;
    let mut of_child = Mirror::begin(&scene.gateway, "table=loose").await;

    scene.db.run(&["alter table t attach partition loose for values from (500) to (600)"]).await;
    of_parent.is_reset().await;
    of_parent.becomes(&scene.db, T).await;
    of_child.is_reset().await;
    let (error, code) = of_child.ends().await;
    let mut all = scene.gateway.follow("").await;
    scene.db.run(&["insert into loose values (503, 3)", "update t set v = 4 where id = 503", "truncate loose"]).await;
    let (insert, update) = (all.changes().await, all.changes().await);

    assert!(error["message"].as_str().unwrap().contains("public.t"), "it names the table to follow: {error}");
    assert_eq!(code, 4400);
    let row = |v: i32| json!({"id": 503, "v": v});
    assert_eq!(insert, [json!({"op": "insert", "table": "public.t", "key": {"id": 503}, "new": row(3)})]);
    assert_eq!((update.len(), &update[0]["table"], &update[0]["new"]), (1, &json!("public.t"), &row(4)));
    of_parent.becomes(&scene.db, T).await;

    // And back.
    scene.db.run(&["alter table t detach partition loose", "insert into loose values (504, 4)"]).await;
    scene.db.watch("loose").await;
    of_parent.becomes(&scene.db, T).await;
    let mut of_child = Mirror::begin(&scene.gateway, "table=loose").await;
    of_child.becomes(&scene.db, "select * from loose").await;
    scene.db.run(&["update loose set v = 5", "truncate loose", "insert into loose values (505, 5)"]).await;
    of_child.becomes(&scene.db, "select * from loose").await;
    scene.db.run(&["update t set v = 6"]).await;
    of_parent.becomes(&scene.db, T).await;
}

#[tokio::test]
async fn a_watched_table_may_become_a_partition_of_one_that_is_not_watched() {
    let scene = Scene::new().await;
    scene.db.run(&PARTITIONED).await;
    scene.db.watch("loose").await;
    let mut follower = Mirror::begin(&scene.gateway, "table=loose").await;

    scene
        .db
        .run(&["alter table t attach partition loose for values from (500) to (600)", "insert into t values (503, 3)"])
        .await;

    follower.becomes(&scene.db, "select * from loose").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlogged_table_that_a_crash_emptied_is_empty_for_those_who_follow_it() {
    let mut server = Server::start(&[]).await;
    let mut scene = Scene::on(server.database().await).await;
    scene.db.run(&["create unlogged table t (id int primary key, v int)", "insert into t values (1, 1), (2, 2)"]).await;
    scene.db.watch("t").await;
    let mut live = Mirror::begin(&scene.gateway, "table=t").await;
    let away = Mirror::begin(&scene.gateway, "table=t").await.leave();
    scene.db.run(&["insert into t values (3, 3)", "checkpoint"]).await;
    live.becomes(&scene.db, T).await;
    let mut other = Mirror::begin(&scene.gateway, "table=other").await;

    server.0.kill().await.unwrap();
    server.0.start_again().await.unwrap();
    scene.db.reconnect().await;

    assert_eq!(scene.db.value::<i64>("select count(*) from t").await, 0);
    live.is_reset().await;
    live.becomes(&scene.db, T).await;
    let mut back = Mirror::resume(&scene.gateway, "table=t", &away).await;
    back.is_reset().await;
    back.becomes(&scene.db, T).await;
    scene.db.run(&["insert into t values (4, 4)"]).await;
    live.becomes(&scene.db, T).await;
    other.hears_only_of(&scene).await;
}

#[tokio::test]
async fn those_who_follow_an_altered_table_at_several_gateways_all_begin_again() {
    let scene = Scene::new().await;
    scene.make_t().await;
    let another = Gateway::start(&scene.db).await;
    let mut followers = [Mirror::begin(&scene.gateway, "table=t").await, Mirror::begin(&another, "table=t").await];

    scene.db.run(&["alter table t disable trigger user; update t set v = 0; alter table t enable trigger user"]).await;

    for follower in &mut followers {
        follower.is_reset().await;
        follower.becomes(&scene.db, T).await;
    }
    scene.db.run(&["update t set v = 1"]).await;
    for follower in &mut followers {
        follower.becomes(&scene.db, T).await;
    }
}

#[tokio::test]
async fn a_table_that_was_altered_is_begun_again_over_plain_http_too() {
    let scene = Scene::new().await;
    scene.make_t().await;
    let cursor = Mirror::begin(&scene.gateway, "table=t").await.leave().cursor;
    let mut follower = Mirror::begin(&scene.gateway, "table=t").await;

    scene.db.run(&["alter table t disable trigger user; update t set v = 0; alter table t enable trigger user"]).await;
    follower.is_reset().await;

    let (status, body) = scene.gateway.get(&format!("/v1/changes?table=t&from={cursor}")).await;
    assert_eq!(status, 410, "{body}");
    let (status, body) = scene.gateway.get(&format!("/v1/changes?table=other&from={cursor}")).await;
    assert_eq!(status, 200, "{body}");
}

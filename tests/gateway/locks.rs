//! Who waits for whom: nobody who writes or alters a table waits for us.

use switchboard::install;
use tokio_postgres::Client as Session;

use crate::commands::{program, run};
use crate::harness::{Database, soon, until};

/// Whether somebody waits for a lock on a table.
async fn somebody_waits(db: &Database) -> bool {
    db.value(
        "select exists (select from pg_locks where locktype = 'relation' and not granted
         and database = (select oid from pg_database where datname = current_database()))",
    )
    .await
}

/// A session in the middle of a transaction that wrote to a table.
async fn long_transaction(db: &Database, table: &str) -> Session {
    let session = db.session().await;
    session
        .batch_execute(&format!(
            "set application_name = 'nightly report'; begin; insert into {table} (name) values ('long')"
        ))
        .await
        .unwrap();
    session
}

#[tokio::test]
async fn commands_that_wait_for_a_table_keep_no_writer_waiting() {
    for command in ["install", "watch", "unwatch", "uninstall"] {
        let db = Database::with_switch().await;
        let waits = ["install", "watch"].contains(&command);
        if waits {
            db.run(&["select switchboard.unwatch('switch')"]).await;
        }
        let long = long_transaction(&db, "switch").await;
        let mut client = install::connect(&db.config()).await.unwrap();
        let mut working = Box::pin(async {
            match command {
                "install" => drop(install::install(&mut client, true, None).await.unwrap()),
                "watch" => install::watch(&mut client, "switch").await.unwrap(),
                "unwatch" => assert!(install::unwatch(&mut client, "switch").await.unwrap()),
                _ => assert!(install::uninstall(&mut client).await.unwrap()),
            }
        });

        for _ in 0..5 {
            let write = async {
                until("the command asks for its lock", async || somebody_waits(&db).await).await;
                db.run(&["insert into switch (name) values ('short')"]).await;
            };
            tokio::select! {
                biased;
                () = &mut working => panic!("{command} did not wait, or gave up before a writer got its turn"),
                () = write => {}
            }
        }
        long.batch_execute("commit").await.unwrap();
        soon(command, working).await;

        let triggers = "select exists (select from pg_trigger where tgrelid = 'switch'::regclass and not tgisinternal)";
        assert_eq!(db.value::<bool>(triggers).await, waits, "{command}");
        assert_eq!(db.value::<i64>("select count(*) from switch where name in ('long', 'short')").await, 6);
    }
}

#[tokio::test]
async fn a_command_that_does_not_get_its_lock_names_the_session_that_has_it() {
    let db = Database::with_switch().await;
    let long = long_transaction(&db, "switch").await;
    let pid: i32 = long.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);

    let ran = run(program(Some(&db.url), &["unwatch", "switch"])).await;

    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    let told = format!(
        "switchboard: unwatching switch: switch is in use by session {pid} (role postgres, \"nightly report\", idle in transaction, in a transaction for 1"
    );
    assert!(ran.err.starts_with(&told), "{}", ran.err);
    assert!(ran.err.contains(&format!("select pg_terminate_backend({pid}), then try again")), "{}", ran.err);
}

//! Whatever a user, a password or a database is called.

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, prop_assume, proptest};

use super::super::*;
use super::{parse, refusal};

#[test]
fn nothing_of_a_refused_string_is_told() {
    for text in [
        "postgres://user1:hunter2?hunter3@h.example/d",
        "postgres://user1:hunter2#hunter3@h.example/d",
        "hunter2://user1:hunter3@h.example/d",
        "postgres://user1:hunter2@h.example/d?hunter3=hunter4",
        "postgres://user1:hunter2/hunter3@h.example/d",
        "postgres://joë:hunt/hunter2@h.example/d",
        "postgres://é:hunter2?x@h.example/d",
    ] {
        let (_, detail) = refusal(text);
        assert!(!detail.contains("hunter") && !detail.contains("user1"), "{text}: {detail}");
    }
}

/// What is printable, with more of what means something somewhere.
fn written(least: usize) -> impl Strategy<Value = String> {
    let letter =
        prop::sample::select("aB7 \"'`;%=\\@:/?#&+{}()[]$,.\u{e9}\u{4e2d}\u{1f600}".chars().collect::<Vec<_>>());
    let odd = prop::collection::vec(letter, least..24).prop_map(String::from_iter);
    let any = proptest::string::string_regex(&format!("\\\\PC{{{least},24}}")).expect("a pattern");
    odd.boxed().prop_union(any.boxed())
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// As each form writes what is quoted in it.
fn writings(user: &str, password: &str, database: &str) -> Vec<String> {
    let libpq = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let ado = |quote: &str, text: &str| format!("{quote}{}{quote}", text.replace(quote, &quote.repeat(2)));
    let [u, p, d] = [user, password, database].map(encoded);
    let [lu, lp, ld] = [user, password, database].map(libpq);
    let mut writings = vec![
        format!("postgres://{u}:{p}@h.example:5432/{d}"),
        format!("DATABASE_URL=\"mysql://{u}:{p}@h.example/{d}?charset=utf8\""),
        format!("jdbc:postgresql://h.example/{d}?user={u}&password={p}"),
        format!("host=h.example user={lu} dbname={ld} password={lp}"),
        format!("pgsql:host=h.example;dbname={ld};user={lu};password={lp}"),
    ];
    let [du, dp, dd] = [user, password, database].map(|text| text.replace(';', ";;"));
    writings.push(format!("mysql:host=h.example;dbname={dd};user={du};password={dp};charset=utf8"));
    for quote in ["\"", "'"] {
        let [u, p, d] = [user, password, database].map(|text| ado(quote, text));
        writings.push(format!("Host=h.example;Username={u};Password={p};Database={d};Pooling=true"));
        writings.push(format!("Password={p};Server=h.example;Uid={u};Database={d}"));
    }
    writings
}

proptest! {
    #[test]
    fn what_is_written_by_the_rules_of_a_form_is_read_as_it_was(
        user in written(1), password in written(1), database in written(1)
    ) {
        prop_assume!(![&user, &password, &database].into_iter().any(|text| is_gap(text)));
        for text in writings(&user, &password, &database) {
            let target = match parse(&text) {
                Ok(target) => target,
                Err(error) => panic!("{text}: {error}"),
            };
            prop_assert_eq!(target.host.as_str(), "h.example", "{}", &text);
            prop_assert_eq!((&target.username, &target.database), (&user, &database), "{}", &text);
            prop_assert_eq!(target.password.expose_secret(), &password, "{}", &text);
        }
    }

    #[test]
    fn no_piece_of_a_password_is_taken_for_a_place(password in "[a-c1@/:?#&=%]{1,12}", scheme in 0..2_usize) {
        let text = format!("{}://user:{password}@h.example:5432/d", ["postgres", "mysql"][scheme]);
        if let Ok(target) = parse(&text) {
            prop_assert_eq!((target.host.as_str(), target.port), ("h.example", 5432), "{}", &text);
            prop_assert_eq!((target.username.as_str(), target.database.as_str()), ("user", "d"), "{}", &text);
        }
    }

    #[test]
    fn no_text_panics_and_no_refusal_repeats_the_password(
        parts in prop::collection::vec(prop::sample::select(FRAGMENTS), 1..12), noise in any::<String>(), at in 0..12_usize
    ) {
        let mut parts = parts;
        let place = at.min(parts.len());
        parts.insert(place, NEEDLE);
        let text = parts.concat();
        for text in [&text, &format!("{text}{noise}"), &format!("{noise}{text}"), &noise] {
            for engine in [None, Some(Engine::Mysql)] {
                if let Err(error) = Target::from_url(&text.clone().into(), engine, None, None) {
                    prop_assert!(!format!("{error:?}").to_lowercase().contains(NEEDLE), "{text}: {error:?}");
                }
            }
        }
    }
}

const NEEDLE: &str = "hunter2needle";

/// Of every form, so that chance comes far into each.
const FRAGMENTS: &[&str] = &[
    "postgres://",
    "mysql://",
    "jdbc:",
    "mysql:",
    "pgsql:",
    "a:",
    "a",
    "@",
    "h.example",
    ":5432",
    "/d",
    "/",
    "?",
    "&",
    "=",
    ";",
    "\n",
    " ",
    "#",
    "%",
    "%2F",
    "'",
    "\"",
    "\\",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ",",
    "$",
    "user=",
    "password=",
    "host=h.example",
    "dbname=d",
    "sslmode=",
    "ssl=",
    "options=",
    "schema=",
    "port=",
    "target_session_attrs=",
    "Host=h.example;",
    "Username=a;",
    "Password=",
    "Database=d;",
    "tcp(",
    ")/d",
    "export ",
    "PGPASSWORD=",
    "DB_HOST=h.example\n",
    "DB_PASSWORD=",
    "spring.datasource.url=",
    "psql ",
    "$env:",
    "[client]\n",
    "host=h.example\n",
    "define('DB_PASSWORD', '",
    "');\n",
    "POSTGRES_URL=",
    "DIRECT_URL=postgres://a:b@h.example/d\n",
    "'ENGINE': 'django.db.backends.mysql',\n",
    "\u{201c}",
    "\u{feff}",
];

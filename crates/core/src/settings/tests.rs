use proptest::prelude::*;

use super::*;

fn changes(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn refusal(of: &[(&str, &str)]) -> String {
    let errors = configured(&Settings::default(), &changes(of)).expect_err("a refusal");
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_default_passes_its_own_check() {
    assert_eq!(check(&Settings::default()), []);
    let all = SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default())).collect();
    assert_eq!(configured(&Settings::default(), &all), Ok(Settings::default()));
}

#[test]
fn the_table_has_each_setting_once_and_says_what_it_is() {
    for (index, setting) in SETTINGS.iter().enumerate() {
        assert!(SETTINGS[..index].iter().all(|other| other.name != setting.name), "{}", setting.name);
        assert!(setting.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", setting.name);
        assert!(!setting.doc.ends_with('.') && setting.doc.len() > 20, "{}", setting.name);
    }
}

#[test]
fn every_field_has_a_row() {
    // A change of every setting through the table changes every field.
    let other = |setting: &Setting| match setting.kind {
        Kind::StandbyNames => "FIRST 1 (b)".to_owned(),
        Kind::Choice { words, .. } => {
            words.iter().find(|word| **word != setting.default()).expect("two words").to_string()
        }
        Kind::Time(number) => print_ms(number.max),
        Kind::Size(number) => print_bytes(number.max),
        Kind::Count(number) => number.max.to_string(),
    };
    let mut settings = Settings::default();
    for setting in &SETTINGS {
        setting.set(&mut settings, &other(setting)).expect("in bounds");
    }
    let of =
        |settings: &Settings| serde_json::to_value(settings).expect("json").as_object().expect("an object").clone();
    let (before, after) = (of(&Settings::default()), of(&settings));
    assert_eq!(before.len(), SETTINGS.len());
    for (field, value) in &before {
        assert_ne!(after.get(field), Some(value), "{field} has no row in the table");
    }
}

#[test]
fn the_words_of_a_choice_are_those_of_its_type() {
    let of = |name: &str| Setting::find(name).expect("a setting").bounds().replace(',', "");
    for (name, error) in [
        ("sync_mode", "?".parse::<SyncMode>().expect_err("no mode").to_string()),
        ("default_durability", "?".parse::<DurabilityLevel>().expect_err("no level").to_string()),
    ] {
        let (_, listed) = error.split_once("expected ").expect("the words that would do");
        assert_eq!(of(name), listed.replace(',', "").replace(" or ", " "), "{name}");
    }
}

#[test]
fn both_ends_of_the_bounds_are_in_and_what_lies_beyond_is_out() {
    for setting in &SETTINGS {
        let (Kind::Time(number) | Kind::Size(number) | Kind::Count(number)) = setting.kind else { continue };
        let text = |value: u64| match setting.kind {
            Kind::Time(_) => print_ms(value),
            Kind::StandbyNames | Kind::Choice { .. } | Kind::Size(_) | Kind::Count(_) => value.to_string(),
        };
        let holds = |value: u64| setting.set(&mut Settings::default(), &text(value)).is_ok();
        assert!(holds(number.min) && holds(number.max) && !holds(number.max + 1), "{}", setting.name);
        assert_eq!(holds(0), number.min == 0 || number.zero.is_some(), "{}", setting.name);
        assert!(number.min < 2 || !holds(number.min - 1), "{}", setting.name);
    }
}

#[test]
fn a_refusal_says_what_would_do() {
    for (name, text, hints) in [
        ("sync_mod", "async", &["no setting \"sync_mod\"", "did you mean sync_mode?"][..]),
        ("frobnicate", "1", &["no setting \"frobnicate\"", "config show"]),
        ("sync_mode", "maybe", &["sync_mode is \"maybe\"", "async, preferred, required"]),
        ("primary_timeout", "499ms", &["500ms to 1h"]),
        ("primary_timeout", "5", &["250ms, 30s or 5min"]),
        ("wal_keep_size", "1GB", &["0 to 1TiB", "1GiB"]),
        ("wal_sender_timeout", "1ms", &["100ms to 1d, or 0 (never)"]),
        ("max_wal_senders", "0", &["1 to 1000"]),
        ("synchronous_standby_names", "ANY 0 (*)", &["the number of standbys at column 5 is 0", "ANY 1 (*)"]),
        ("synchronous_standby_names", "ANY 1 (", &["column"]),
        ("synchronous_standby_names", "\"a", &["no closing quote"]),
    ] {
        let message = refusal(&[(name, text)]);
        for hint in hints {
            assert!(message.contains(hint), "{name}={text}: {message}");
        }
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let message =
        refusal(&[("sync_mode", "x"), ("nonsense", "y"), ("checkpoint_timeout", "1ms"), ("wal_keep_size", "0")]);
    assert_eq!(message.lines().count(), 3, "{message}");
}

#[test]
fn settings_must_fit_together() {
    let message = refusal(&[("request_id_retention", "10s")]);
    assert!(message.contains("commit_deadline is 30s"), "{message}");
}

#[test]
fn a_state_of_before_has_the_defaults_for_what_it_lacks() {
    let old = r#"{"synchronous_standby_names":"FIRST 1 (b)","sync_mode":"required","primary_timeout_ms":2000,"max_lag_on_failover_bytes":7}"#;
    let settings: Settings = serde_json::from_str(old).expect("an older state");
    let expected = Settings {
        synchronous_standby_names: "FIRST 1 (b)".to_owned(),
        sync_mode: SyncMode::Required,
        primary_timeout_ms: 2_000,
        max_lag_on_failover_bytes: 7,
        ..Settings::default()
    };
    assert_eq!(settings, expected);
}

#[test]
fn messages_are_bounded() {
    let long = "x".repeat(1 << 20);
    assert!(refusal(&[(&long, "1")]).len() < 300);
    for setting in &SETTINGS {
        assert!(refusal(&[(setting.name, &long)]).len() < 500, "{}", setting.name);
        assert!(refusal(&[(setting.name, &format!("\"{long}"))]).len() < 500, "{}", setting.name);
    }
    let many: BTreeMap<String, String> = (0..100_000).map(|i| (format!("n{i}"), String::new())).collect();
    assert_eq!(configured(&Settings::default(), &many).expect_err("a refusal").len(), ERRORS_MAX);
}

fn valid_text(index: usize, number: u64) -> (String, String) {
    let setting = &SETTINGS[index % SETTINGS.len()];
    let within = |of: Number| of.min + number % (of.max - of.min + 1);
    let text = match setting.kind {
        Kind::StandbyNames => ["", "ANY 1 (*)", "first 2 (a, \"b-c\")", "x"][(number % 4) as usize].to_owned(),
        Kind::Choice { words, .. } => words[(number % words.len() as u64) as usize].to_owned(),
        Kind::Time(of) => print_ms(within(of)),
        Kind::Size(of) => print_bytes(within(of)),
        Kind::Count(of) => within(of).to_string(),
    };
    (setting.name.to_owned(), text)
}

proptest! {
    #[test]
    fn no_text_panics_and_what_is_taken_is_shown_again(index in 0..SETTINGS.len(), text in ".*") {
        let setting = &SETTINGS[index];
        let mut settings = Settings::default();
        if setting.set(&mut settings, &text).is_ok() {
            let mut again = Settings::default();
            setting.set(&mut again, &setting.get(&settings)).expect("what is shown can be set");
            prop_assert_eq!(settings, again);
        } else {
            prop_assert_eq!(settings, Settings::default());
        }
    }

    #[test]
    fn shown_and_set_again_is_the_same(picks in proptest::collection::vec((0_usize..17, any::<u64>()), 0..20)) {
        let mut settings = Settings::default();
        for (name, text) in picks.into_iter().map(|(index, number)| valid_text(index, number)) {
            Setting::find(&name).expect("known").set(&mut settings, &text).expect("in bounds");
        }
        let all = SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.get(&settings))).collect();
        match configured(&Settings::default(), &all) {
            Ok(again) => prop_assert_eq!(again, settings),
            Err(errors) => prop_assert_eq!(errors, check(&settings)),
        }
    }

    #[test]
    fn what_was_configured_passes_the_check(picks in proptest::collection::vec((0_usize..17, any::<u64>()), 0..20)) {
        let picks = picks.into_iter().map(|(index, number)| valid_text(index, number)).collect();
        if let Ok(settings) = configured(&Settings::default(), &picks) {
            prop_assert_eq!(check(&settings), []);
        }
    }
}

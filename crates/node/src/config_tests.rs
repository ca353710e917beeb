use super::*;

fn config() -> ServerConfig {
    let members = ["a=127.0.0.1:7401", "b=127.0.0.1:7402", "c=127.0.0.1:7403"];
    ServerConfig {
        name: "a".parse().expect("a name"),
        data_dir: PathBuf::from("data"),
        listen: "127.0.0.1:7401".parse().expect("an address"),
        http_listen: None,
        advertise: "127.0.0.1:7401".to_owned(),
        initial_cluster: members.iter().map(|text| parse_member(text).expect("a member")).collect(),
        segment_size: SegmentSize::DEFAULT,
        failover_priority: 1,
        no_sync: false,
        settings: Settings::default(),
        log_format: LogFormat::Text,
        log_level: "info".to_owned(),
        max_connections: 2000,
        origins: BTreeMap::new(),
        sources: Sources::default(),
    }
}

fn refusal(change: impl FnOnce(&mut ServerConfig)) -> String {
    let mut config = config();
    change(&mut config);
    config.check().expect_err("a refusal").to_string()
}

#[test]
fn a_sensible_configuration_passes() {
    assert_eq!(config().check(), Ok(()));
    let alone = ServerConfig { initial_cluster: Vec::new(), ..config() };
    assert_eq!(alone.check(), Ok(()));
}

#[test]
fn addresses_are_host_and_port() {
    for good in ["127.0.0.1:1", "node-1:7400", "db.example.org:65535", "[::1]:7400"] {
        assert_eq!(check_address("it", good), Ok(()), "{good}");
    }
    for bad in
        ["", ":7400", "node", "node:", "node:0", "node:65536", "node:+1", "::1:7400", "[x]:1", "http://a:1", "a b:1"]
    {
        assert!(check_address("it", bad).is_err(), "{bad}");
    }
}

#[test]
fn an_address_that_nobody_can_connect_to_is_refused() {
    let message = refusal(|c| c.advertise = "0.0.0.0:7401".to_owned());
    assert!(message.contains("--advertise"), "{message}");
    let message = refusal(|c| c.advertise = "127.0.0.1:0".to_owned());
    assert!(message.contains("host:port"), "{message}");
}

#[test]
fn a_node_must_be_in_its_own_initial_cluster() {
    let message = refusal(|c| c.name = "d".parse().expect("a name"));
    assert!(message.contains("a, b, c") && message.contains("d=127.0.0.1:7401"), "{message}");
    let message = refusal(|c| c.advertise = "127.0.0.1:7409".to_owned());
    assert!(message.contains("has a at 127.0.0.1:7401") && message.contains("127.0.0.1:7409"), "{message}");
}

#[test]
fn names_and_addresses_are_unique() {
    let message = refusal(|c| c.initial_cluster[2].0 = "B".parse().expect("a name"));
    assert!(message.contains("name B twice"), "{message}");
    let message = refusal(|c| c.initial_cluster[2].1 = "127.0.0.1:7402".to_owned());
    assert!(message.contains("address 127.0.0.1:7402 twice"), "{message}");
}

#[test]
fn a_cluster_has_a_largest_size() {
    let message = refusal(|c| {
        c.initial_cluster = (0..=MEMBERS_MAX).map(|i| parse_member(&format!("n{i}=h{i}:7400")).expect("one")).collect();
    });
    assert!(message.contains("65 members"), "{message}");
}

#[test]
fn a_timeout_shorter_than_five_beats_is_refused() {
    assert!(refusal(|c| c.settings.primary_timeout_ms = 499).contains("499ms"));
    assert!(refusal(|c| c.settings.primary_timeout_ms = 3_600_001).contains("3600001ms"));
}

#[test]
fn a_malformed_member_is_named() {
    for bad in ["", "a", "a=", "=h:1", "a=h", "-=h:1", "a b=h:1"] {
        let message = parse_member(bad).expect_err(bad).to_string();
        assert!(message.contains("host:port"), "{message}");
    }
}

#[test]
fn an_endless_address_is_refused_and_not_repeated() {
    let endless = "a".repeat(4 << 20);
    for text in [&endless, &format!("{endless}:7400"), &format!("node-1:{}7400", "0".repeat(4 << 20))] {
        let error = check_address("the address of the new node", text).expect_err("a refusal").to_string();
        assert!(error.len() < 300 && error.contains("not host:port"), "{} bytes", error.len());
    }
    let error = parse_member(&endless).expect_err("a refusal").to_string();
    assert!(error.len() < 300, "{} bytes", error.len());
}

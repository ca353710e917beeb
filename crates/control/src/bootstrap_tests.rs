use super::*;

const SEGMENT: u64 = 16 << 20;

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn initial() -> BTreeMap<NodeName, String> {
    ["a", "b", "c"].into_iter().map(|text| (name(text), format!("{text}.example:5000"))).collect()
}

fn answer(text: &str, id: u64) -> IdentifyAnswer {
    IdentifyAnswer {
        node_id: NodeId::new(id),
        name: name(text),
        system_id: SystemId::default(),
        empty: true,
        initial_cluster: initial_cluster_text(&initial()),
        segment_size: SEGMENT,
    }
}

fn all() -> BTreeMap<NodeName, Option<IdentifyAnswer>> {
    [("a", 3), ("b", 2), ("c", 1)].into_iter().map(|(text, id)| (name(text), Some(answer(text, id)))).collect()
}

fn decision(me: &str, answers: &BTreeMap<NodeName, Option<IdentifyAnswer>>) -> Decision {
    decide(&name(me), &initial(), answers)
}

/// The answers after one of them was changed.
fn changed(text: &str, change: impl FnOnce(&mut IdentifyAnswer)) -> BTreeMap<NodeName, Option<IdentifyAnswer>> {
    let mut answers = all();
    change(answers.get_mut(&name(text)).and_then(Option::as_mut).expect("it answered"));
    answers
}

#[test]
fn the_smallest_name_makes_the_cluster_and_the_others_wait() {
    let members = [(3, "a"), (2, "b"), (1, "c")]
        .into_iter()
        .map(|(id, text)| (NodeId::new(id), format!("{text}.example:5000")))
        .collect();
    assert_eq!(decision("a", &all()), Decision::Initialize { members });
    for me in ["b", "c"] {
        assert_eq!(decision(me, &all()), Decision::Wait { why: "a makes the new cluster".to_owned() });
    }
}

#[test]
fn nobody_makes_a_cluster_while_a_member_is_silent() {
    for missing in ["b", "c"] {
        let mut answers = all();
        answers.insert(name(missing), None);
        let Decision::Wait { why } = decision("a", &answers) else { panic!("it must wait for {missing}") };
        assert!(why.contains(&format!("{missing}.example:5000")), "{why}");
        answers.remove(&name(missing));
        assert!(matches!(decision("a", &answers), Decision::Wait { .. }));
    }
}

#[test]
fn nobody_makes_a_cluster_beside_a_member_in_use() {
    let in_a_cluster = changed("b", |b| {
        b.empty = false;
        b.system_id = SystemId::new(0xabc);
    });
    for me in ["a", "c"] {
        let Decision::Wait { why } = decision(me, &in_a_cluster) else { panic!("{me} must wait") };
        assert!(why.contains("0000000000000abc") && why.contains("run: understudy members replace"), "{why}");
    }
    let mut and_the_rest_silent = in_a_cluster;
    and_the_rest_silent.insert(name("c"), None);
    let Decision::Wait { why } = decision("a", &and_the_rest_silent) else { panic!("a must wait") };
    assert!(why.contains("0000000000000abc"), "{why}");

    let half_made = changed("a", |a| a.empty = false);
    let Decision::Wait { why } = decision("b", &half_made) else { panic!("b must wait") };
    assert!(why.contains("a is not empty"), "{why}");
}

#[test]
fn the_node_itself_must_be_empty_too() {
    assert!(matches!(decision("a", &changed("a", |a| a.empty = false)), Decision::Wait { .. }));
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let refused = |answers: &BTreeMap<NodeName, Option<IdentifyAnswer>>, expected: &str| {
        for me in ["a", "b"] {
            let Decision::Refuse { why } = decision(me, answers) else { panic!("{me} must refuse: {expected}") };
            assert!(why.contains(expected), "{why}");
        }
    };
    refused(&changed("c", |c| c.initial_cluster = "a=x,c=y".to_owned()), "a=x,c=y");
    refused(&changed("c", |c| c.segment_size = 1 << 20), "1048576");
    refused(&changed("c", |c| c.name = name("d")), "is d, not c");
    refused(&changed("c", |c| c.node_id = NodeId::new(2)), "b and c are the same node 0000000000000002");
    assert!(matches!(decision("d", &all()), Decision::Refuse { .. }));
    assert!(matches!(decide(&name("a"), &BTreeMap::new(), &all()), Decision::Refuse { .. }));
}

#[test]
fn names_and_lists_are_compared_without_case() {
    let answers = changed("b", |b| {
        b.name = name("B");
        b.initial_cluster = b.initial_cluster.to_ascii_uppercase();
    });
    assert!(matches!(decision("a", &answers), Decision::Initialize { .. }));
}

#[test]
fn one_node_alone_makes_its_cluster() {
    let initial: BTreeMap<NodeName, String> = [(name("a"), "localhost:1".to_owned())].into();
    let answers = [(name("a"), Some(answer("a", 9)))].into();
    let members = [(NodeId::new(9), "localhost:1".to_owned())].into();
    assert_eq!(decide(&name("a"), &initial, &answers), Decision::Initialize { members });
}

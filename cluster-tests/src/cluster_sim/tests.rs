use super::*;

#[test]
fn a_fixed_set_of_seeds_holds() {
    let mut counts = Counts::default();
    for seed in 1..=100 {
        match run(seed, None, None) {
            Ok(outcome) => counts.add(outcome.counts),
            Err(violation) => panic!("{violation}"),
        }
    }
    counts.assert_everything_happened();
}

#[test]
fn every_story_ends_well() {
    for story in 0..faults::STORIES.len() {
        for seed in 1..=20 {
            if let Err(violation) = run(seed, Some(story), None) {
                panic!("{violation}");
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 7, 99] {
        assert_eq!(run(seed, None, None).unwrap(), run(seed, None, None).unwrap());
    }
    assert_ne!(run(1, None, None).unwrap().trace, run(2, None, None).unwrap().trace);
}

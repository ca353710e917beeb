//! The lines of a document that a reader copies: the blocks that begin with ```` ```sh ````. Tests run them as they stand.

/// The blocks below the heading `under`, or of the whole text when there is none given.
///
/// # Panics
/// When the text has no such heading.
pub fn blocks<'a>(text: &'a str, under: Option<&str>) -> Vec<&'a str> {
    let mut rest = text;
    if let Some(heading) = under {
        let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect("the heading");
        rest = section.split("\n## ").next().unwrap_or(section);
    }
    let mut blocks = Vec::new();
    while let Some((_, after)) = rest.split_once("```sh\n") {
        let Some((block, after)) = after.split_once("```") else { break };
        blocks.push(block);
        rest = after;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_the_shell_are_found_and_no_others() {
        let text = "# A\n\n## One\n```sh\na\n```\n```text\nb\n```\n\n## Two\n```sh\nc\nd\n```\n";
        assert_eq!(blocks(text, None), ["a\n", "c\nd\n"]);
        assert_eq!(blocks(text, Some("One")), ["a\n"]);
        assert_eq!(blocks(text, Some("Two")), ["c\nd\n"]);
    }
}

//! Chat templates: the Jinja programs that model files carry to turn messages into the text that the model was trained
//! on, set up as Hugging Face transformers does.
//!
//! A template comes with the model, from anywhere. It can reach nothing but its arguments, and it can't take the
//! process with it: instructions, recursion and the text that it makes are bounded (see [`MAX_INSTRUCTIONS`] and
//! `python::budget`).

use std::sync::Arc;

use chrono::{Local, NaiveDateTime};
use minijinja::machinery::{
    CompiledTemplate, Instruction, Instructions, TemplateConfig, Vm, WhitespaceConfig, make_string_output,
};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

use super::python::{self, Raised};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::loader::{Metadata, ModelFile};

/// Instructions that one rendering may take: hundreds of times what the largest published template needs for a
/// conversation of a thousand messages, and below a few seconds.
pub const MAX_INSTRUCTIONS: u64 = 20_000_000;

/// Longest template that is accepted; the largest published ones have 20 KB.
pub const MAX_SOURCE_BYTES: usize = 4 << 20;

/// Whether the text ends with the beginning of the assistant's next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// The model is to answer.
    Yes,
    /// The conversation as it is.
    No,
}

/// A chat template, checked for syntax. It is immutable and can be shared by threads.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    /// `source` with `{% generation %}` turned into a block that the engine knows.
    program: String,
    bos: String,
    eos: String,
    now: Option<NaiveDateTime>,
}

impl ChatTemplate {
    /// The template of a model: `tokenizer.chat_template` in a GGUF file, `chat_template.jinja` or the one in
    /// `tokenizer_config.json` in a Hugging Face folder. `None` when the model has none.
    ///
    /// # Errors
    /// [`Error::Template`] when it can't be parsed, [`Error::BadMetadata`] when it isn't text.
    pub fn for_model(file: &ModelFile, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let source = match &file.metadata {
            Metadata::Gguf(metadata) => metadata.str("tokenizer.chat_template")?,
            Metadata::Hf(metadata) => metadata.chat_template.as_deref(),
        };
        source.map(|source| Self::for_tokenizer(source, tokenizer)).transpose()
    }

    /// A template that a GGUF file has beside the main one, such as `tool_use` (`tokenizer.chat_template.tool_use`).
    ///
    /// # Errors
    /// As [`ChatTemplate::for_model`].
    pub fn named(file: &ModelFile, name: &str, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let source = match &file.metadata {
            Metadata::Gguf(metadata) => metadata.str(&format!("tokenizer.chat_template.{name}"))?,
            Metadata::Hf(_) => None,
        };
        source.map(|source| Self::for_tokenizer(source, tokenizer)).transpose()
    }

    fn for_tokenizer(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        Self::from_source(source.to_owned(), &text(tokenizer.bos()), &text(tokenizer.eos()))
    }

    /// A template from its source and the texts that it knows as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`Error::Template`] with the line where it can't be parsed.
    pub fn from_source(source: String, bos: &str, eos: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Error::Template(format!(
                "{} bytes of template are more than {MAX_SOURCE_BYTES}",
                source.len()
            )));
        }
        let program = without_generation_tags(&source);
        let template = Self { source, program, bos: bos.into(), eos: eos.into(), now: None };
        template.compile()?;
        Ok(template)
    }

    /// The same template for which it is always this time (ISO 8601 without a zone, such as `2026-01-15T12:00:00`):
    /// templates that write the date make prompts that are reproducible.
    ///
    /// # Errors
    /// [`Error::Template`] when `now` isn't a time.
    pub fn at_time(mut self, now: &str) -> Result<Self> {
        let parsed = now.parse().map_err(|error| Error::Template(format!("`{now}` is not a time: {error}")))?;
        self.now = Some(parsed);
        Ok(self)
    }

    /// The source as the model file has it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for `messages` (a list of objects with `role` and `content`), with `tools` if the model may call
    /// some, and further variables in `extra` (`enable_thinking`, `documents`…).
    ///
    /// # Errors
    /// [`Error::Template`]: the template's own message where it refuses the messages (`raise_exception`), else what went
    /// wrong and on which line.
    pub fn render(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        add_generation_prompt: GenerationPrompt,
        extra: &Map<String, Value>,
    ) -> Result<String> {
        let mut context = Map::new();
        context.insert("messages".into(), messages.clone());
        context.insert("tools".into(), tools.cloned().unwrap_or_default());
        context.insert("documents".into(), Value::Null);
        context.insert("add_generation_prompt".into(), (add_generation_prompt == GenerationPrompt::Yes).into());
        context.insert("bos_token".into(), self.bos.as_str().into());
        context.insert("eos_token".into(), self.eos.as_str().into());
        context.extend(extra.iter().map(|(key, value)| (key.clone(), value.clone())));
        self.render_context(&context)
    }

    /// The text for exactly these variables.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_context(&self, context: &Map<String, Value>) -> Result<String> {
        let compiled = self.compile()?;
        let now = self.now.unwrap_or_else(|| Local::now().naive_local());
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        python::install(&mut environment, now);
        let root = context.iter().map(|(key, value)| (key.as_str(), python::from_json(value))).collect();
        let mut text = String::new();
        let result = Vm::new(&environment).eval(
            &compiled.instructions,
            root,
            &compiled.blocks,
            &mut make_string_output(&mut text),
            AutoEscape::None,
        );
        match result {
            Ok(_) => Ok(text),
            Err(error) => Err(refused(&error)),
        }
    }

    fn compile(&self) -> Result<CompiledTemplate<'_>> {
        let config = TemplateConfig {
            syntax_config: Default::default(),
            ws_config: WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true },
            default_auto_escape: Arc::new(|_| AutoEscape::None),
        };
        let mut compiled =
            CompiledTemplate::new("chat_template", &self.program, &config).map_err(|error| refused(&error))?;
        bound_operators(&mut compiled.instructions)?;
        compiled.blocks.values_mut().try_for_each(bound_operators)?;
        Ok(compiled)
    }
}

/// Puts functions in the place of the operators that make new text and lists: ours follow Python and stop at a bound,
/// where the engine's would let `x ~ x` in a loop fill the memory.
fn bound_operators(instructions: &mut Instructions<'_>) -> Result<()> {
    for at in 0..instructions.len() as u32 {
        let Some(instruction) = instructions.get_mut(at) else { continue };
        let function = match instruction {
            Instruction::StringConcat => python::CONCAT,
            Instruction::Add => python::ADD,
            Instruction::Mul => python::MUL,
            Instruction::LoadConst(value) if python::is_too_large(value) => {
                return Err(Error::Template("a constant is larger than 64 MiB".into()));
            }
            _ => continue,
        };
        // `!0`: don't keep the look-up in a slot, since the compiler has given none out for it.
        *instruction = Instruction::ApplyFilter(function, Some(2), !0);
    }
    Ok(())
}

/// An engine's error as ours: the template's own message if it raised one.
fn refused(error: &minijinja::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return Error::Template(message.clone());
        }
        source = cause.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return Error::Template(format!("stopped after {MAX_INSTRUCTIONS} instructions; it may never end"));
    }
    let detail =
        error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    Error::Template(format!("{detail}{line}"))
}

/// `{% generation %}` marks, for training, what the assistant wrote. Prompts have no use for the marks: the tags become
/// an `if` that always holds, with the same control of white space.
fn without_generation_tags(source: &str) -> String {
    let mut program = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        program.push_str(before);
        // In a comment or a `raw` block the words would be text; templates don't write them there.
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end];
        let trimmed = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
        let replacement = match trimmed.trim() {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match replacement {
            Some(word) => program.push_str(&tag[..end + 2].replacen(trimmed.trim(), word, 1)),
            None => program.push_str(&tag[..end + 2]),
        }
        rest = &tag[end + 2..];
    }
    program.push_str(rest);
    program
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, context: Value) -> Result<String> {
        let template = ChatTemplate::from_source(source.into(), "<s>", "</s>")?.at_time("2026-01-15T12:00:00")?;
        template.render_context(context.as_object().unwrap())
    }

    fn ok(source: &str) -> String {
        render(source, json!({"x": {"b": [1, 2.5, null, true, "it's"], "a": "é<"}, "words": ["a", "b"]})).unwrap()
    }

    fn message(source: &str) -> String {
        match render(source, json!({})).unwrap_err() {
            Error::Template(message) => message,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn values_print_as_python_prints_them() {
        assert_eq!(ok("{{ x }}"), "{'b': [1, 2.5, None, True, \"it's\"], 'a': 'é<'}");
        let list = "[1, 2.5, None, True, \"it's\"]";
        let text = ok("{{ x.b|string }} {{ 'v=' ~ x.b }} {{ x.b|join('+') }}");
        assert_eq!(text, format!("{list} v={list} 1+2.5+None+True+it's"));
        assert_eq!(
            ok("{{ none }} {{ true }} {{ 1e20 }} {{ 0.00001 }} {{ 100000.0 }} {{ missing }}"),
            "None True 1e+20 1e-05 100000.0 "
        );
        assert_eq!(ok("{{ [missing, 'a\nb'] }}"), "[Undefined, 'a\\nb']");
    }

    #[test]
    fn tojson_writes_pythons_json() {
        assert_eq!(ok("{{ x|tojson }}"), "{\"b\": [1, 2.5, null, true, \"it's\"], \"a\": \"é<\"}");
        assert_eq!(ok("{{ words|tojson(indent=2) }}"), "[\n  \"a\",\n  \"b\"\n]");
        assert_eq!(
            ok("{{ {'b': 1, 'a': [], 'c': {}}|tojson(sort_keys=true, separators=(',', ':')) }}"),
            "{\"a\":[],\"b\":1,\"c\":{}}"
        );
        assert_eq!(ok("{{ 'é\n\u{1}'|tojson(ensure_ascii=true) }}"), "\"\\u00e9\\n\\u0001\"");
        assert!(message("{{ missing|tojson }}").contains("JSON"));
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_sets_it() {
        assert_eq!(
            ok("{% for w in words %}\n  {% if true %}\n{{ w }}\n  {% endif %}\n{% endfor %}\nend\n"),
            "a\nb\nend"
        );
        assert_eq!(ok("{% for w in words %}{% if w == 'b' %}{% break %}{% endif %}{{ w }}{% endfor %}"), "a");
    }

    #[test]
    fn generation_tags_leave_no_trace() {
        assert_eq!(ok("a {%- generation -%} b {% endgeneration %}\nc"), "ab c");
        assert_eq!(ok("{% if true %}{% generation %}x{% endgeneration %}{% endif %}"), "x");
    }

    #[test]
    fn raised_messages_arrive_as_they_are() {
        assert_eq!(message("{{ raise_exception('Only user: ' ~ 1) }}"), "Only user: 1");
        assert_eq!(message("{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}"), "deep");
    }

    #[test]
    fn the_date_is_pinned_where_asked() {
        assert_eq!(ok("{{ strftime_now('%d %b %Y') }}"), "15 Jan 2026");
        assert!(message("{{ strftime_now('%!') }}").contains("%!"));
    }

    #[test]
    fn broken_templates_are_errors_with_a_line() {
        let error = ChatTemplate::from_source("a\n{% if %}".into(), "", "").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(message("{{ missing.field.more }}").contains("line 1"));
        assert!(message("{% include 'other' %}").contains("other"));
    }

    #[test]
    fn messages_reach_the_template() {
        let template = ChatTemplate::from_source(
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'].strip() }}{% endfor %}\
             {% if tools is none and documents is none %}-{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}"
                .into(),
            "<s>",
            "</s>",
        )
        .unwrap();
        let messages = json!([{"role": "user", "content": " hi "}]);
        let render = |prompt| template.render(&messages, None, prompt, &Map::new()).unwrap();
        assert_eq!(render(GenerationPrompt::Yes), "<s>[user]hi-[assistant]");
        assert_eq!(render(GenerationPrompt::No), "<s>[user]hi-");
    }

    #[test]
    fn hostile_templates_stop() {
        let double =
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(200) %}{% set ns.x = ns.x OP ns.x %}{% endfor %}";
        for hostile in [
            &*double.replace("OP", "~"),
            &*double.replace("OP", "+"),
            "{% set ns = namespace(x=['a']) %}{% for i in range(200) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
            "{% set ns = namespace(x='a') %}{% for i in range(200) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
            "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
            "{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('a') }}",
            "{% for i in range(9999) %}{{ 'a' * 1000000 }}{% endfor %}",
            "{{ [1] * 10000000000 }}",
            "{{ ([1] * 10000000000)|list }}",
            "{{ [['a' * 1000] * 100000] * 100000 }}",
            "{% set n = 10000000000 %}{{ [1] * n }}",
            "{{ 'a' * 10000000000 }}",
            "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
            "{{ ('b' * 100000).join(range(99999)) }}",
            "{{ range(99999)|join('b' * 100000) }}",
            "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
            "{{ ('a\n' * 100000)|indent(1000000) }}",
            "{{ '%9999999999d'|format(1) }}",
            "{{ '{:>9999999999}'.format('a') }}",
            "{{ [1]|tojson(indent=10000000000) }}",
            "{{ 'a'|center(9999999999) }}",
            &*"(".repeat(100_000),
            &*format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
        ] {
            let started = std::time::Instant::now();
            let result = render(hostile, json!({}));
            let shown: String = hostile.chars().take(60).collect();
            assert!(result.is_err() || result.unwrap().len() < 1 << 20, "{shown}");
            assert!(started.elapsed().as_secs() < 20, "{shown}: {:?}", started.elapsed());
        }
    }
}

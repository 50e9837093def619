"""The help tab. Plain HTML without anything from a user; knows no component."""

_SHORTCUTS = (
    ("Enter", "send"),
    ("Shift + Enter", "new line"),
    ("Esc", "stop the answer, or close what is open"),
    ("/", "go to the message field"),
    ("Alt + N", "new chat"),
    ("Tab", "reach an answer, then"),
    ("← →", "walk through its tokens"),
    ("Enter", "open the token"),
)

_ROWS = "".join(f"<div><dt><kbd>{keys}</kbd></dt><dd>{text}</dd></div>" for keys, text in _SHORTCUTS)

HELP_HTML = f"""
<div class="uq-about" role="region" aria-label="Help" tabindex="0">
<h2>What the colours say</h2>
<p>Each piece of an answer is tinted by how unsure the model was when it wrote it: blue is sure, orange and red are
not. The line under a word says the same without colour.</p>
<p>A number is a chance of being wrong only where the line above the chat says what it is calibrated for; a note at an
answer tells when it lies outside of that. All others only rank: a model can be sure and wrong. Use them to see where
to look.</p>
<h2>What you can do</h2>
<ul>
<li>Open a word: how likely it was, what else the model might have written, and what every estimator says.</li>
<li>Tint whole sentences, or only names and numbers: the panel lists them with the riskiest first.</li>
<li>Add a trained estimator in the Estimators tab, read the cards, and refit with your own marks.</li>
<li>Have a text scored that is already written: the Score tab takes it with its question.</li>
<li>Continue from there with another word. The old answer stays; switch with ‹ 1 / 2 ›.</li>
<li>Mark an answer, or the words you select, as right or wrong. The marks are stored with the chat.</li>
<li>Change the estimator or the scale at any time; nothing is generated again.</li>
</ul>
<h2>Keys</h2>
<dl class="uq-keys">{_ROWS}</dl>
</div>
"""

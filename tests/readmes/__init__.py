"""Every code block of every Markdown file is executed as a reader would, or checked where that cannot be.

The blocks of one file run in their order, in one temporary folder, and share what the shell has exported and
its current folder. The folder has a `config.yaml` whose section `storage:` names a database with a few
conversations, on the server of the tests; so does the variable `MONGODB_URL`, and `mongodb://localhost`
stands for that server. THREAD, RUN and USER in a command stand for ids of that database (`demo_data.py`).

- `python`: the program runs; with `# name.py` as its first line it becomes that file, and is imported.
- `console`, `bash`: runs in bash, and stops at the first command that fails. `pip`, `uv` and `pytest` are
  stand-ins that check their arguments (`stand_ins.py`).
- `javascript`: evaluated with a stand-in for mongosh, whose commands the server executes (`mongosh.py`).
- `yaml`, `toml`, `json`, `dockerfile`: parsed, and checked by what it is (`checking.py`); with `# name.yaml`
  as its first line it becomes that file.
- `text`: each line occurs in the output of the block before it, in this order; `...` is any text. It shares
  the comments of that block.

Comments on the lines before a block, which no reader sees:

- `<!-- checked: why -->`: it is not executed; its syntax, programs, options, extras and URIs are checked.
- `<!-- executed by: tests/hosts/test_tutorial.py -->`: a test of its own executes it; here it is checked.
- `<!-- stopped: after 3 s -->`: it runs until Ctrl-C, which it gets after so many seconds.
- `<!-- server: http://127.0.0.1:8001/health -->`: it runs until the last block; the next one waits until that
  address answers. Port 8001 is replaced by a free one everywhere in the file.

`python -m tests.readmes` lists all blocks.
"""

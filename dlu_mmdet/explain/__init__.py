"""Class activation maps of detections."""

from ..stacks import check_stack, is_command

# a command reads its arguments first, with options that lie here
if not is_command():
    check_stack()

"""Files out of a multipart/form-data body, within limits."""

from multipart import MultipartError, ParserLimitReached, PushMultipartParser, parse_options_header

FIELD = "file"
MAX_HEADERS, MAX_HEADER_BYTES = 8, 4096 + 128  # of a part, and of one header
MAX_OTHER_PARTS = 16  # fields and files that nobody asked for, and that are passed over
NOT_A_FILE = f"send multipart/form-data with the image as a file in a field named {FIELD}"


class UploadError(ValueError):
    """A body without what was asked for (HTTP 422); the message is one sentence, fit for whoever sent it."""


class MalformedUpload(UploadError):
    """A body that is no multipart/form-data, though it says so (HTTP 400)."""


class UploadTooLarge(UploadError):
    """More files, parts or headers than are taken (HTTP 413)."""


def read_files(content_type: str, body: bytes, most: int = 1, instead: str = "") -> list[bytes]:
    """The contents of the files in the field named ``file``, in their order, at least one.

    Args:
        content_type: the header, with the boundary.
        most: files that are taken; more are an error.
        instead: what else the sender may send, for the sentence where there is no file.

    Raises:
        UploadError: one of the above.
    """
    kind, options = parse_options_header(content_type)
    if kind != "multipart/form-data":
        raise UploadError(NOT_A_FILE + instead)
    if "boundary" not in options:
        raise MalformedUpload("the header Content-Type names no boundary; let your HTTP library write it")
    files, parts = [], None
    try:
        with PushMultipartParser(
            options["boundary"],
            max_header_size=MAX_HEADER_BYTES,
            max_header_count=MAX_HEADERS,
            max_segment_count=most + MAX_OTHER_PARTS,
            header_charset="latin-1",  # takes all bytes; names of files are not looked at
        ) as parser:
            for event in parser.parse(body):
                if event is None:
                    parts = None
                elif isinstance(event, (bytes, bytearray)):
                    if parts is not None:
                        parts.append(event)
                elif event.name == FIELD and event.filename is not None:
                    parts = []
                    files.append(parts)
    except ParserLimitReached as error:
        raise UploadTooLarge(_say_limit(str(error), most)) from error
    except MultipartError as error:
        raise MalformedUpload(f"the body is not what its Content-Type says ({error}); send it again") from error
    if not files:
        raise UploadError(NOT_A_FILE + instead)
    if len(files) > most:
        raise UploadTooLarge(f"the form has {len(files)} files, at most {most} are taken; send fewer")
    return [b"".join(parts) for parts in files]


def _say_limit(words, most):
    """Which limit was reached: the parser tells by its words alone."""
    if "header length" in words:
        return f"a header of the form has more than {MAX_HEADER_BYTES} bytes; give the file a shorter name"
    if "header count" in words:
        return f"a part of the form has more than {MAX_HEADERS} headers; let your HTTP library write them"
    return f"the form has more than {most + MAX_OTHER_PARTS} parts; send {most} at most"

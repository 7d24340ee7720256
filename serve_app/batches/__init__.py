"""OpenAI's files and batches, on the sink of `raydecode generate`.

files     uploaded and produced files: bytes, and the record that makes them a file
records   a batch as immutable records; its state is read from them, by any process
input     what a line of a batch file must hold; one pass that counts and finds repeats
proxy     contracts.Engine over a gateway: a row is a line of the file, its text the whole answer
results   committed rows to output and error lines
runner    runs batches: a ledger and a generation actor each, resumed by the commit log
"""

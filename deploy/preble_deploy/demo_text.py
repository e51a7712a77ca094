"""The words of the demo model's tokenizer: plain English, written for this purpose."""

DEMO_TEXT = """\
A lighthouse keeper wrote in her book every evening. The first page said how high the water stood,
the second how many ships had passed, and the third was kept for questions nobody had asked yet.
When the fog came she rang the bell, and the answer travelled over the bay as a long low sound.

The market opens before the sun does. Bakers carry warm bread across the square, farmers stack
apples and onions, and somebody always sings. You can buy honey from the hills, salt from the coast,
paper, string, lamp oil, and a good knife. Prices are written with chalk, so they change by noon.

To make soup for eight people, take two onions, four carrots, one small cabbage, a spoon of butter,
and water. Cut everything into small pieces, warm the butter slowly, then add the vegetables. After
ten minutes pour in the water and wait. Good soup needs time more than it needs anything else.

A computer keeps what it used recently close at hand, because it will probably need it again. The
place is called a cache. When two questions begin with the same words, the work for the common part
can be done once and shared. What was computed for one reader then serves the next one for nothing.

How do you share work among many hands? If everyone runs to the nearest worker, a long queue forms
there while others stand idle. If each goes to a random place, nobody finds the tools already laid
out. A fair rule weighs both: the time you wait, and the time you save where your tools are.

Dear friend, thank you for your letter. The garden is well. We planted beans, peas and garlic in
March, and the pear tree is in flower again. My brother repaired the old clock, which now runs five
minutes fast. Please tell me about your journey, the mountains, the train, and the people you met.

System: you are a helpful assistant. Answer with short and clear sentences. If you do not know
something, say so. User: what is the capital of France? Assistant: the capital of France is Paris.
User: and how far is it from London? Assistant: about three hundred and forty kilometres by air.

def average(values):
    total = sum(values)
    return total / len(values) if values else 0.0

for name, count in sorted(words.items()):
    print(name, count)

The river begins as a spring under a grey stone. Within a mile it is a stream that children jump
over; within a day's walk it turns a mill; and where it meets the sea, great ships lie at anchor. No
drop stays, yet we call it by one name from beginning to end, and we are right to do so.

Numbers: 0 1 2 3 4 5 6 7 8 9 10 11 12 20 24 30 36 48 50 60 64 72 80 96 100 128 256 365 512 1000 1024
2048 4096. Half of sixty is thirty, a third is twenty, a quarter is fifteen. Seven times eight is
fifty six. There are twenty four hours in a day and three hundred and sixty five days in most years.

In winter the library stays open until nine. Students read under green lamps; a teacher marks
essays; two old men play chess without speaking. Snow falls against the window and the heating hums.
At closing time a small light blinks three times, books are returned, coats are found, doors close.

{"name": "Preble", "kind": "demo", "pages": [1, 2, 3], "ready": true, "note": null}
https://example.com/path?query=value&limit=100

Once there was a map that showed only roads somebody had walked. Each traveller who came home drew a
new line, and each line made the next journey shorter. Before many years had passed, people stopped
asking how long a road was and began to ask who had been there before them, and what they had left.
"""
